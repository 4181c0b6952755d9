"""Run a model on loan: record what its layers compute, differentiate by it, and run the model on from it."""

from glowmap.capture.activations import Recording as Recording
from glowmap.capture.activations import Seen as Seen
from glowmap.capture.activations import record as record
from glowmap.capture.biases import Biases as Biases
from glowmap.capture.biases import shortfalls as shortfalls
from glowmap.capture.borrowing import borrowed as borrowed
from glowmap.capture.guided import Guiding as Guiding
from glowmap.capture.intermediates import Keep as Keep
from glowmap.capture.intermediates import Opened as Opened
from glowmap.capture.intermediates import opened as opened
from glowmap.capture.resume import Trunk as Trunk
from glowmap.capture.resume import copies as copies
from glowmap.capture.resume import exchanged as exchanged
from glowmap.capture.resume import forward_of as forward_of
from glowmap.capture.resume import remember as remember
from glowmap.capture.resume import resumed as resumed
from glowmap.capture.resume import same_output as same_output
