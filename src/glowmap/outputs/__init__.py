"""Outputs: what a model returned, read as class scores, boxes, embeddings and a prediction."""

from glowmap.outputs.boxes import boxes_by_logit as boxes_by_logit
from glowmap.outputs.boxes import boxes_by_score as boxes_by_score
from glowmap.outputs.boxes import centre_to_corners as centre_to_corners
from glowmap.outputs.boxes import detected_boxes as detected_boxes
from glowmap.outputs.boxes import is_spatial as is_spatial
from glowmap.outputs.boxes import names_boxes as names_boxes
from glowmap.outputs.boxes import pixels_to_shares as pixels_to_shares
from glowmap.outputs.boxes import shares_to_pixels as shares_to_pixels
from glowmap.outputs.candidates import Candidates as Candidates
from glowmap.outputs.candidates import Corners as Corners
from glowmap.outputs.candidates import DetectedBox as DetectedBox
from glowmap.outputs.class_names import background_class as background_class
from glowmap.outputs.embedding import embedding_cautions as embedding_cautions
from glowmap.outputs.embedding import read_embedding as read_embedding
from glowmap.outputs.model_output import ModelOutput as ModelOutput
from glowmap.outputs.model_output import OutputReaders as OutputReaders
from glowmap.outputs.model_output import read_logits as read_logits
from glowmap.outputs.prediction import Prediction as Prediction
