"""Models of transformers: classifiers, segmentation, detection, and models of pictures and words."""

from glowmap.models.transformers import family as family
