"""What to explain: from what a model answered to one score per image.

A target is a class (:class:`Category`), a set of pixels (:class:`Pixels`), one detection (:class:`Detection`), one question for
each image (:class:`Each`), or any callable from the model's raw output to one score per image. A list of targets asks several
questions.
"""

from glowmap.targets._answer import Answer as Answer
from glowmap.targets._answer import background_class as background_class
from glowmap.targets._candidates import Candidates as Candidates
from glowmap.targets._candidates import Found as Found
from glowmap.targets._target import Target as Target
from glowmap.targets._target import changed as changed
from glowmap.targets._target import checked as checked
from glowmap.targets._target import leaves as leaves
from glowmap.targets._target import notes_of as notes_of
from glowmap.targets._target import of_places as of_places
from glowmap.targets._target import settled as settled
from glowmap.targets.asking import Custom as Custom
from glowmap.targets.asking import Each as Each
from glowmap.targets.asking import TargetLike as TargetLike
from glowmap.targets.asking import as_questions as as_questions
from glowmap.targets.asking import as_target as as_target
from glowmap.targets.classes import Category as Category
from glowmap.targets.classes import Predicted as Predicted
from glowmap.targets.detection import Detection as Detection
from glowmap.targets.pixels import Pixels as Pixels
from glowmap.targets.pixels import read_masks as read_masks
from glowmap.targets.text import Text as Text
