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
from glowmap.methods._masks import resize as resize
from glowmap.methods._method import GRADIENT_FREE as GRADIENT_FREE
from glowmap.methods._method import METHODS as METHODS
from glowmap.methods._method import MakeBatch as MakeBatch
from glowmap.methods._method import Method as Method
from glowmap.methods._method import Query as Query
from glowmap.methods._method import is_flat as is_flat
from glowmap.methods._method import read_methods as read_methods
from glowmap.methods._method import read_smoothing as read_smoothing
from glowmap.methods._method import reduced_for as reduced_for
