"""The shelf of methods; the file that holds a method says its price."""

from glowmap.methods import activation as activation
from glowmap.methods import attention as attention
from glowmap.methods import gradient as gradient
from glowmap.methods import perturbation as perturbation
from glowmap.methods import sliding_window as sliding_window
from glowmap.methods import smoothing as smoothing
from glowmap.methods import whole_network as whole_network
from glowmap.methods._attention import Attention as Attention
from glowmap.methods._attention import Block as Block
from glowmap.methods._method import ASKING as ASKING
from glowmap.methods._method import EVIDENCE as EVIDENCE
from glowmap.methods._method import GRADIENT_FREE as GRADIENT_FREE
from glowmap.methods._method import METHODS as METHODS
from glowmap.methods._method import OF_ATTENTION as OF_ATTENTION
from glowmap.methods._method import OF_THE_INPUT as OF_THE_INPUT
from glowmap.methods._method import Make as Make
from glowmap.methods._method import Method as Method
from glowmap.methods._method import Query as Query
