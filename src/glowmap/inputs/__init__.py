"""Inputs: pictures, volumes, signals and tensors become one batch; InputError for what cannot be explained."""

from glowmap.inputs.batch import PICTURE_KEYWORDS as PICTURE_KEYWORDS
from glowmap.inputs.batch import Batch as Batch
from glowmap.inputs.batch import as_batch as as_batch
from glowmap.inputs.batch import pictures_of as pictures_of
from glowmap.inputs.loading import MAX_PIXELS as MAX_PIXELS
from glowmap.inputs.loading import PictureLike as PictureLike
from glowmap.inputs.loading import check_picture_size as check_picture_size
from glowmap.inputs.loading import read_picture as read_picture
from glowmap.inputs.loading import read_pictures as read_pictures
from glowmap.inputs.masks import Mask as Mask
from glowmap.inputs.masks import crop_masks as crop_masks
from glowmap.inputs.masks import read_masks as read_masks
from glowmap.inputs.patches import PatchPositions as PatchPositions
from glowmap.inputs.pictures import Drawable as Drawable
from glowmap.inputs.pictures import Picture as Picture
from glowmap.inputs.pictures import Signal as Signal
from glowmap.inputs.pictures import Volume as Volume
from glowmap.inputs.pictures import uncropped as uncropped
