"""Run a model on loan: record what its layers compute, differentiate by it, and run the model on from it."""

from glowmap.capture.activations import Activation as Activation
from glowmap.capture.activations import Recording as Recording
from glowmap.capture.activations import record as record
from glowmap.capture.biases import BiasGradients as BiasGradients
from glowmap.capture.biases import completeness_gap as completeness_gap
from glowmap.capture.borrowing import borrow as borrow
from glowmap.capture.borrowing import call_model as call_model
from glowmap.capture.borrowing import unwrapped_name as unwrapped_name
from glowmap.capture.guided import GuidedReLU as GuidedReLU
from glowmap.capture.hooks import hookable as hookable
from glowmap.capture.hooks import hooked as hooked
from glowmap.capture.hooks import method_patched as method_patched
from glowmap.capture.intermediates import KeepOutput as KeepOutput
from glowmap.capture.intermediates import WithIntermediates as WithIntermediates
from glowmap.capture.intermediates import keep_intermediates as keep_intermediates
from glowmap.capture.resume import Prefix as Prefix
from glowmap.capture.resume import patch_activation as patch_activation
from glowmap.capture.resume import record_prefix as record_prefix
from glowmap.capture.resume import repeat_image as repeat_image
from glowmap.capture.resume import replay_outputs as replay_outputs
from glowmap.capture.resume import replay_prefix as replay_prefix
from glowmap.capture.resume import same_output as same_output
