"""Which models are fine-tuned exactly, and why the others are refused: all of it in this place."""

from __future__ import annotations

from fairchem.core.common import gp_utils
from fairchem.core.models.dimenet_plus_plus import DimeNetPlusPlus
from fairchem.core.models.escn.escn_exportable import eSCN as ExportableESCN
from fairchem.core.models.esen.esen import MLP_EFS_Head
from fairchem.core.models.esen.esen_dens import MLP_EFS_Head as DeNSGradientHead
from fairchem.core.models.gemnet_gp.gemnet import GraphParallelGemNetT
from fairchem.core.models.gemnet_oc.gemnet_oc import GemNetOC
from fairchem.core.models.schnet import SchNet
from torch import nn

from fairchem_gdeq.fairchem1.families import graphs_of
from fairchem_gdeq.frozen.forward import backbone_of

REFUSED: dict[type[nn.Module], str] = {
    ExportableESCN: (
        "escn_export takes tensors instead of a batch and makes its edge frames where nothing can be "
        "set from outside. Open the checkpoint as model escn."
    ),
    GraphParallelGemNetT: (
        "gp_gemnet_t does not run in fairchem-core 1.10 at all: it reads graph.distance_vec, which "
        "is now graph.edge_distance_vec. Use gemnet_t."
    ),
}
# Conservative, and not twice differentiable: measured against central differences.
NOT_TWICE: dict[type[nn.Module], str] = {
    DimeNetPlusPlus: "the derivative of its forces is wrong by 1% as it is in fairchem",
    GemNetOC: "the derivative of its forces is NaN where its energy is differentiated twice",
}
CONSERVATIVE = (SchNet, DimeNetPlusPlus)
# They keep the graph of their forces in training mode alone; the others always do.
GRADIENT_HEADS = (MLP_EFS_Head, DeNSGradientHead)


def is_conservative(model: nn.Module) -> bool:
    """Whether forces are the gradient of the energy; SchNet's and DimeNet++'s, without a switch, are."""
    backbone = backbone_of(model)
    return isinstance(backbone, CONSERVATIVE) or not getattr(backbone, "direct_forces", True)


def require_exact(model: nn.Module) -> None:
    """Refuse a model whose Jacobian on a frozen graph would not be the derivative of its forces.

    Raises:
        ValueError: says why and what to do.
    """
    backbone = backbone_of(model)
    name = type(backbone).__name__
    if not getattr(backbone, "regress_forces", True):
        raise ValueError(f"{name} predicts no forces (regress_forces: false).")
    for refused, reason in REFUSED.items():
        if isinstance(backbone, refused):
            raise ValueError(reason)
    for refused, reason in NOT_TWICE.items():
        if isinstance(backbone, refused) and is_conservative(model):
            raise ValueError(
                f"{name} computes forces as the gradient of its energy, and {reason}. Use a model with "
                "direct_forces: true, or another conservative one: eSEN, GemNet-T, PaiNN or SchNet."
            )
    if gp_utils.initialized():
        raise ValueError(
            "graph parallelism (gp_gpus) splits the edges of a structure among processes, and a "
            "frozen graph is whole. Use data parallelism alone."
        )
    graphs_of(backbone)


def element_limit(model: nn.Module) -> int | None:
    """The first atomic number that a model does not know; None where it does not say."""
    backbone = backbone_of(model)
    known = getattr(backbone, "max_num_elements", None)
    if isinstance(known, int):
        return known
    if isinstance(backbone, SchNet):
        return int(backbone.embedding.num_embeddings)
    # GemNet and PaiNN do not keep the number, and their first row is hydrogen.
    rows = getattr(getattr(backbone, "atom_emb", None), "embeddings", None)
    return rows.num_embeddings + 1 if isinstance(rows, nn.Embedding) else None
