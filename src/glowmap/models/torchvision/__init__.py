"""Models of torchvision: classifiers, segmentation, detection and video."""

from glowmap.models.torchvision import family as family
