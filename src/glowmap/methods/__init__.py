"""The shelf of methods; the file that holds a method says its price."""

from glowmap.methods import gradient as gradient
from glowmap.methods._method import METHODS as METHODS
from glowmap.methods._method import Method as Method
