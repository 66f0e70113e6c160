"""AdamW on weights that lie side by side: a step of all of them is a dozen kernels, whatever their number."""

# torch's optimisers are made of functions that it doesn't list as its own.
# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from detection3d.training.packing import pack, room_for

_MOMENTS = ("exp_avg", "exp_avg_sq")  # torch's names in the state of a weight


@dataclass
class _Group:
    """The weights of a group, packed.

    Attributes:
        weights: all of them in one; its `grad` is room for all gradients, laid out alike.
        parts: of that room, one for each weight.
        moments: of each kind and the counts of steps, packed; None until the first step, and after a state was loaded.
    """

    weights: Tensor
    parts: list[Tensor]
    moments: dict[str, Tensor] | None = None


class PackedAdamW(torch.optim.AdamW):
    """torch's fused AdamW, with weights, gradients and moments of a group in one tensor each.

    The weights are moved there when it is made, so it must be made before anything remembers where they are, as CUDA
    graphs do. State dicts are torch's own, of each weight, and may come from and go to its AdamW.

    Args:
        groups: as for torch, with settings for each; weights of one device, in float32.
        lr: learning rate.
        betas: of the two moments.

    Attributes:
        packed: what scalers and clipping take for an optimiser whose few weights have the packed gradients.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        super().__init__(groups, lr=lr, betas=betas, fused=True)
        self._groups: list[_Group] = []
        for group in self.param_groups:
            weights: list[nn.Parameter] = group["params"]
            if weights:
                gradients, parts = room_for(weights)
                together = pack(weights)
                together.grad = gradients
                self._groups.append(_Group(together, parts))
        self.packed = SimpleNamespace(param_groups=[{"params": [group.weights for group in self._groups]}])
        self._taken = self._uneven = False

    @torch.no_grad()
    def take_gradients(self) -> bool:
        """Pack copies of all gradients, which the next step goes along; False where a weight has none.

        Then that step and all after it in this process are torch's, weight by weight, since their counts of steps may
        no longer be equal: slower, and with sums in another order.
        """
        gradients = [[weight.grad for weight in group["params"]] for group, _ in self._pairs()]
        self._uneven |= any(gradient is None for group in gradients for gradient in group)
        if self._uneven:
            return False
        for group, packed in zip(gradients, self._groups, strict=True):
            assert packed.weights.grad is not None
            packed.weights.grad.zero_()  # clipping makes even the gaps NaN where a gradient is
            torch._foreach_copy_(packed.parts, group)
        self._taken = True
        return True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Step, unless `found_inf`, which scalers set, is 1."""
        if not self._taken:
            return super().step(closure)
        assert closure is None
        self._taken = False
        found: Tensor | None = getattr(self, "found_inf", None)
        for group, packed in self._pairs():
            if packed.moments is None:
                packed.moments = self._packed_moments(group["params"])
            average, squares, steps = packed.moments.values()
            assert packed.weights.grad is not None
            steps.add_(1 if found is None else 1 - found)
            beta1, beta2 = group["betas"]
            torch._fused_adamw_(
                [packed.weights], [packed.weights.grad], [average], [squares], [], [steps[0]], lr=group["lr"],
                beta1=beta1, beta2=beta2, weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False,
                maximize=False, grad_scale=None, found_inf=found,
            )  # fmt: skip
        return None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state, of this optimiser or of torch's."""
        super().load_state_dict(state_dict)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        self._uneven = len({float(self.state.get(weight, {}).get("step", 0.0)) for weight in weights}) > 1
        for group in self._groups:
            group.moments = None

    def _pairs(self) -> Iterable[tuple[dict[str, Any], _Group]]:
        return zip((group for group in self.param_groups if group["params"]), self._groups, strict=True)

    def _packed_moments(self, weights: list[nn.Parameter]) -> dict[str, Tensor]:
        """Pack the moments of the weights and their counts of steps; begin as torch does where there are none."""
        for weight in weights:
            state = self.state[weight]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=weight.device)
            for name in _MOMENTS:
                moment = torch.zeros_like(weight) if name not in state else state[name]
                # Loaded, it may be laid out otherwise, and would not lie beside its weight's gradient.
                state[name] = moment if moment.stride() == weight.stride() else torch.empty_like(weight).copy_(moment)
        return {name: pack([self.state[weight][name] for weight in weights]) for name in (*_MOMENTS, "step")}
