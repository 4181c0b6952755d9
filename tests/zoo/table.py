"""All of the zoo, library by library."""

from zoo import (
    contrastive,
    own,
    segmentation,
    timm_convolutions,
    timm_transformers,
    torchvision_classifiers,
    torchvision_places,
    transformers_classifiers,
    transformers_places,
    transformers_words,
    yolo,
)
from zoo.specimen import Specimen

SPECIMENS: list[Specimen] = [
    *torchvision_classifiers.SPECIMENS,
    *torchvision_places.SPECIMENS,
    *timm_convolutions.SPECIMENS,
    *timm_transformers.SPECIMENS,
    *transformers_classifiers.SPECIMENS,
    *transformers_places.SPECIMENS,
    *transformers_words.SPECIMENS,
    *segmentation.SPECIMENS,
    *contrastive.SPECIMENS,
    *yolo.SPECIMENS,
    *own.SPECIMENS,
]
