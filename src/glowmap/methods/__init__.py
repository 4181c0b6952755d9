"""The shelf of methods; the file that holds a method says its price."""

from glowmap.methods import gradient as gradient
from glowmap.methods._method import ASKING as ASKING
from glowmap.methods._method import EVIDENCE as EVIDENCE
from glowmap.methods._method import METHODS as METHODS
from glowmap.methods._method import Ask as Ask
from glowmap.methods._method import Make as Make
from glowmap.methods._method import Method as Method
