"""Outputs: what a model returned, read as class scores, boxes, embeddings and a prediction."""

from glowmap.outputs.boxes import Corners as Corners
from glowmap.outputs.boxes import corners as corners
from glowmap.outputs.boxes import found_of as found_of
from glowmap.outputs.boxes import in_pixels as in_pixels
from glowmap.outputs.boxes import in_shares as in_shares
from glowmap.outputs.boxes import surest_first as surest_first
from glowmap.outputs.boxes import surest_first_by_sigmoid as surest_first_by_sigmoid
from glowmap.outputs.candidates import Candidates as Candidates
from glowmap.outputs.candidates import Found as Found
from glowmap.outputs.candidates import OnDemand as OnDemand
from glowmap.outputs.class_scores import read_logits as read_logits
from glowmap.outputs.embedding import embedding_cautions as embedding_cautions
from glowmap.outputs.embedding import read_embedding as read_embedding
from glowmap.outputs.model_output import ModelOutput as ModelOutput
from glowmap.outputs.model_output import OutputReaders as OutputReaders
from glowmap.outputs.model_output import background_class as background_class
from glowmap.outputs.prediction import Box as Box
from glowmap.outputs.prediction import Prediction as Prediction
from glowmap.outputs.prediction import predicted_by as predicted_by
