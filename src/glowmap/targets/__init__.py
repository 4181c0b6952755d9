"""What to explain: from what a model answered to one score per image.

A target is a class (:class:`Category`), its probability, the likeliest classes (:func:`top`), one class rather than another
(:class:`Contrast`,
:class:`Finer`), a number (:class:`OutputValue`); a set of pixels (:class:`Pixels`), an object by a point on it or by
its size (:class:`At`, :class:`Object`), a single place (:class:`Point`); one detection or several (:class:`Detection`,
:class:`AllDetections`, :class:`SimilarDetection`); a sentence (:class:`Text`);
a likeness (:class:`Similar`, :class:`Prototype`), a unit
or a direction (:class:`Unit`, :class:`Direction`); the negative of any of these (:class:`Not`), one question for each image
(:class:`Each`), or any callable from the model's raw output to one score per image. A list of targets asks several questions.
"""

from glowmap.inputs import parts_seen as parts_seen
from glowmap.inputs import read_masks as read_masks
from glowmap.outputs import Candidates as Candidates
from glowmap.outputs import DetectedBox as DetectedBox
from glowmap.outputs import ModelOutput as ModelOutput
from glowmap.outputs import OutputReaders as OutputReaders
from glowmap.outputs import background_class as background_class
from glowmap.outputs import pixels_to_shares as pixels_to_shares
from glowmap.targets._class import ClassQuestion as ClassQuestion
from glowmap.targets._target import Annotation as Annotation
from glowmap.targets._target import Target as Target
from glowmap.targets._target import annotations_of as annotations_of
from glowmap.targets._target import cautions_of as cautions_of
from glowmap.targets._target import changed as changed
from glowmap.targets._target import checked as checked
from glowmap.targets._target import leaves as leaves
from glowmap.targets._target import of_places as of_places
from glowmap.targets._target import ranks as ranks
from glowmap.targets._target import settled as settled
from glowmap.targets.classes import Category as Category
from glowmap.targets.classes import LogProbability as LogProbability
from glowmap.targets.classes import OutputValue as OutputValue
from glowmap.targets.classes import Predicted as Predicted
from glowmap.targets.classes import Probability as Probability
from glowmap.targets.classes import Ranked as Ranked
from glowmap.targets.classes import as_class as as_class
from glowmap.targets.classes import top as top
from glowmap.targets.combined import Contrast as Contrast
from glowmap.targets.combined import Finer as Finer
from glowmap.targets.combined import Not as Not
from glowmap.targets.conversion import Each as Each
from glowmap.targets.conversion import FunctionTarget as FunctionTarget
from glowmap.targets.conversion import TargetLike as TargetLike
from glowmap.targets.conversion import as_questions as as_questions
from glowmap.targets.conversion import as_target as as_target
from glowmap.targets.conversion import by_callable as by_callable
from glowmap.targets.detections import AllDetections as AllDetections
from glowmap.targets.detections import Detection as Detection
from glowmap.targets.detections import SimilarDetection as SimilarDetection
from glowmap.targets.embeddings import Direction as Direction
from glowmap.targets.embeddings import LayerOutput as LayerOutput
from glowmap.targets.embeddings import Prototype as Prototype
from glowmap.targets.embeddings import Similar as Similar
from glowmap.targets.embeddings import Unit as Unit
from glowmap.targets.pixels import Pixels as Pixels
from glowmap.targets.regions import At as At
from glowmap.targets.regions import Object as Object
from glowmap.targets.regions import Point as Point
from glowmap.targets.regions import Region as Region
from glowmap.targets.text import Text as Text
from glowmap.targets.text import TokenLogProbability as TokenLogProbability
from glowmap.targets.text import TokenSpan as TokenSpan

# What people ask with; the rest is for the rooms above.
__all__ = [
    "AllDetections",
    "At",
    "Category",
    "Contrast",
    "Detection",
    "Direction",
    "Each",
    "Finer",
    "LogProbability",
    "Not",
    "Object",
    "OutputValue",
    "Pixels",
    "Point",
    "Predicted",
    "Probability",
    "Prototype",
    "Ranked",
    "Similar",
    "SimilarDetection",
    "Target",
    "Text",
    "Unit",
    "top",
]
