"""Families of models, and :func:`load`, which returns a model that takes pictures."""

from glowmap.models import demo as demo
from glowmap.models import open_clip as open_clip
from glowmap.models import smp as smp
from glowmap.models import timm as timm
from glowmap.models import torchvision as torchvision
from glowmap.models import transformers as transformers
from glowmap.models import ultralytics as ultralytics
from glowmap.models._family import FAMILIES as FAMILIES
from glowmap.models.loading import as_model as as_model
from glowmap.models.loading import load as load
from glowmap.models.model import Model as Model
from glowmap.models.model import TextPass as TextPass
from glowmap.models.preprocessing import Colours as Colours
from glowmap.models.preprocessing import Size as Size
from glowmap.models.ultralytics import yolo_boxes as yolo_boxes
