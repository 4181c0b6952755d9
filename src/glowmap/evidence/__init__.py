"""Evidence: a session runs the model and makes what methods need. The file that holds a kind of evidence says its price."""

from glowmap.evidence import layer as layer
from glowmap.evidence import recorded_attention as recorded_attention
from glowmap.evidence import rescoring as rescoring
from glowmap.evidence import whole_network as whole_network
from glowmap.evidence.kinds import ATTENTION as ATTENTION
from glowmap.evidence.kinds import EVIDENCE as EVIDENCE
from glowmap.evidence.kinds import INPUT as INPUT
from glowmap.evidence.kinds import EvidenceKind as EvidenceKind
from glowmap.evidence.kinds import evidence as evidence
from glowmap.evidence.kinds import is_cheap as is_cheap
from glowmap.evidence.kinds import map_places as map_places
from glowmap.evidence.kinds import method_cost as method_cost
from glowmap.evidence.kinds import requirements as requirements
from glowmap.methods import METHODS

for _name, _method in METHODS.items():
    requirements(_method.needs)  # a method of ours that needs what is no kind of evidence fails at import
