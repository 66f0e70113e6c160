"""Every setting of the config's methods arrives in the method at the fork."""

import pytest
from pydantic import TypeAdapter

from detection3d.config import MultitaskConfig
from detection3d.multitask import (
    MGDA,
    CAGrad,
    GradDrop,
    GradientPenalty,
    GradNorm,
    Identity,
    Method,
    PCGrad,
    Ramp,
    RandomSign,
    Sigmoid,
    Sum,
    TaskClipping,
    Uncertainty,
)
from detection3d.training.method import build_method

RAMP = {"first": 0.25, "last": 1.0, "start": 2, "stop": 6}
SIGN = {"leak": 0.2, "marginalize": "batch+space", "preserve_norm": False, "strength": 0.7}


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ("sum", Sum()),
        ("graddrop", GradDrop()),
        ({"kind": "graddrop", "keep": "identity", **SIGN}, GradDrop(keep=Identity(), **SIGN)),
        ({"kind": "graddrop", "keep": {"kind": "sigmoid", "scale": 2.0}}, GradDrop(keep=Sigmoid(2.0))),
        ({"kind": "graddrop", "leak": RAMP, "strength": RAMP}, GradDrop(leak=Ramp(**RAMP), strength=Ramp(**RAMP))),
        (
            {"kind": "graddrop", "leak": {"box": 0.3, "orientation": RAMP}},
            GradDrop(leak={"box": 0.3, "orientation": Ramp(**RAMP)}),
        ),
        ("random_sign", RandomSign()),
        ({"kind": "random_sign", **SIGN}, RandomSign(**SIGN)),
        ({"kind": "clipping", "max_norm": 3.0}, TaskClipping(3.0)),
        ({"kind": "mgda", "normalize": "norm"}, MGDA(normalize="norm")),
        ("pcgrad", PCGrad()),
        ({"kind": "cagrad", "c": 0.3}, CAGrad(0.3)),
        (
            {"kind": "gradnorm", "alpha": 0.5, "learning_rate": 0.01, "then": "graddrop"},
            GradNorm(alpha=0.5, learning_rate=0.01, then=GradDrop()),
        ),
        ({"kind": "uncertainty", "then": "pcgrad"}, Uncertainty(then=PCGrad())),
        (
            {"kind": "gradient_penalty", "weight": 0.7, "then": "random_sign"},
            GradientPenalty(weight=0.7, then=RandomSign()),
        ),
    ],
)
def test_settings_arrive(settings: object, wanted: Method) -> None:
    config = TypeAdapter(MultitaskConfig).validate_python({"method": settings})
    assert build_method(config.method) == wanted


@pytest.mark.parametrize("kind", ["sum", "clipping", "mgda", "cagrad", "gradnorm", "gradient_penalty", "uncertainty"])
def test_defaults_are_those_of_the_methods(kind: str) -> None:
    kinds = {
        "sum": Sum,
        "clipping": TaskClipping,
        "mgda": MGDA,
        "cagrad": CAGrad,
        "gradnorm": GradNorm,
        "gradient_penalty": GradientPenalty,
        "uncertainty": Uncertainty,
    }
    config = TypeAdapter(MultitaskConfig).validate_python({"method": kind})
    assert build_method(config.method) == kinds[kind]()
