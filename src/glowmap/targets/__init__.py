"""Targets: what to explain. A target is a function from the model's output to one score per image.

The map shows where the layer holds the evidence for this score. Anything below may be given as ``target``, alone or in a list:

- classes: an index or a name (:class:`Category`), the likeliest classes (:func:`top`, :class:`Ranked`), a probability
  (:class:`Probability`, :class:`LogProbability`), a class rather than others (:class:`Contrast`, :class:`Finer`), an output that
  is a number and no class (:class:`OutputValue`);
- pixels of a dense model: a mask or region (:class:`Pixels`), the object under a point (:class:`At`), an object by its size
  (:class:`Object`), a single place (:class:`Point`);
- detections: one (:class:`Detection`), all (:class:`AllDetections`), or similarity to a box (:class:`SimilarDetection`);
- texts: a sentence or one of its words (:class:`Text`);
- features: similarity to a picture (:class:`Similar`) or a vector (:class:`Prototype`), a direction (:class:`Direction`), a unit
  of the embedding or of a layer (:class:`Unit`);
- the negative of any target (:class:`Not`), and a target for each image of a batch (:class:`PerImage`);
- None: the model's own prediction.

Targets nest: ``Not(Pixels(Contrast("car", "bus"), At(120, 80)))``. For a target of your own give a callable from the model's raw
output to one floating score per image, or a subclass of :class:`Target`.
"""

from glowmap.inputs import crop_masks as crop_masks
from glowmap.inputs import read_masks as read_masks
from glowmap.outputs import Candidates as Candidates
from glowmap.outputs import DetectedBox as DetectedBox
from glowmap.outputs import ModelOutput as ModelOutput
from glowmap.outputs import OutputReaders as OutputReaders
from glowmap.outputs import background_class as background_class
from glowmap.outputs import pixels_to_shares as pixels_to_shares
from glowmap.targets._class import Category as Category
from glowmap.targets._class import ClassTarget as ClassTarget
from glowmap.targets._target import Annotation as Annotation
from glowmap.targets._target import Target as Target
from glowmap.targets.classes import LogProbability as LogProbability
from glowmap.targets.classes import OutputValue as OutputValue
from glowmap.targets.classes import Predicted as Predicted
from glowmap.targets.classes import Probability as Probability
from glowmap.targets.classes import Ranked as Ranked
from glowmap.targets.classes import top as top
from glowmap.targets.combined import Contrast as Contrast
from glowmap.targets.combined import Finer as Finer
from glowmap.targets.combined import Not as Not
from glowmap.targets.conversion import FunctionTarget as FunctionTarget
from glowmap.targets.conversion import PerImage as PerImage
from glowmap.targets.conversion import TargetLike as TargetLike
from glowmap.targets.conversion import as_target as as_target
from glowmap.targets.conversion import as_targets as as_targets
from glowmap.targets.conversion import pin_images as pin_images
from glowmap.targets.detections import AllDetections as AllDetections
from glowmap.targets.detections import Detection as Detection
from glowmap.targets.detections import SimilarDetection as SimilarDetection
from glowmap.targets.detections import for_detector as for_detector
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
from glowmap.targets.text import for_text_generator as for_text_generator
from glowmap.targets.text import replace_texts as replace_texts
from glowmap.targets.text import texts_in as texts_in

# the targets that people name; the rest is for the rooms above
__all__ = [
    "AllDetections",
    "At",
    "Category",
    "Contrast",
    "Detection",
    "Direction",
    "Finer",
    "LogProbability",
    "Not",
    "Object",
    "OutputValue",
    "PerImage",
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
