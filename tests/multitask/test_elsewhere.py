"""The fork in nets that have nothing to do with detection: the docstring's example, a transformer, plain features."""

import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detection3d.multitask import GradDrop, Sum, TaskFork, graddrop, uniform
from detection3d.multitask.positions import DensePositions, Marginalize


def example() -> str:
    """The code in the fork's docstring."""
    documentation = inspect.getdoc(TaskFork)
    assert documentation is not None
    code = documentation.split("Example:\n")[1].split("::\n", 1)[1].split("\nArgs:\n")[0]
    return textwrap.dedent(code)


def test_the_example_in_the_docstring_trains_both_heads() -> None:
    namespace: dict = {"__name__": "example"}
    exec(compile(example(), "example", "exec"), namespace)
    net, x = namespace["net"], namespace["x"]
    assert net.fork.step.item() == 199
    with torch.no_grad():
        value, sign = net(x)
    target = x[:, 0] * x[:, 1]
    # A constant has the errors 0.8 and 0.49 here.
    assert (value - target).square().mean() < 0.1
    assert ((sign > 0) == (target > 0)).float().mean() > 0.95
    assert len(example().strip().splitlines()) <= 35


def test_the_example_uses_graddrop() -> None:
    weights = []
    for method in ("GradDrop()", "Sum()"):
        namespace: dict = {"__name__": "example", "Sum": Sum}
        exec(example().replace("GradDrop())", f"{method})").replace("range(200)", "range(2)"), namespace)
        weights.append(namespace["net"].backbone[0].weight)
    assert not torch.equal(*weights)


class Transformer(nn.Module):
    """Tokens [B, T] to shared features [B, T, C]; one head tags each token, the other scores the sequence."""

    def __init__(self, method: GradDrop | Sum) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(11, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.fork = TaskFork(("tag", "score"), method, seed=5)
        self.tag, self.score = nn.Linear(8, 3), nn.Linear(8, 1)
        self.double()

    def shared(self, tokens: Tensor) -> Tensor:
        return self.encoder(self.embedding(tokens))

    def losses(self, features: dict[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
        tag = nn.functional.cross_entropy(self.tag(features["tag"]).flatten(0, 1), tokens.flatten() % 3)
        score = self.score(features["score"].mean(1))[:, 0]
        return {"tag": tag, "score": (score - tokens.double().mean(1)).square().mean()}


def reference(net: nn.Module, shared: Tensor, losses: dict[str, Tensor], method: GradDrop, step: int) -> None:
    """A backward pass for each task down to the shared features, and one from there with what they are combined to."""
    at_fork = [torch.autograd.grad(loss, shared, retain_graph=True)[0] for loss in losses.values()]
    shape = DensePositions(method.marginalize, method.channel_dim).shape(shared.shape)
    samples = torch.arange(len(shared)) if method.marginalize == "none" else None
    combined = graddrop(
        at_fork,
        shared.detach(),
        uniform(shape, 5, step, "fork", "cpu", samples),
        marginalize=method.marginalize,
        channel_dim=method.channel_dim,
        preserve_norm=method.preserve_norm,
    )
    parameters = [value for value in net.parameters() if value.grad is None]
    found = torch.autograd.grad(shared, parameters, combined, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient


@pytest.mark.parametrize("preserve_norm", [True, False])
@pytest.mark.parametrize("marginalize", ["batch", "batch+space", "none"])
def test_a_transformer(marginalize: Marginalize, preserve_norm: bool) -> None:
    method = GradDrop(marginalize=marginalize, channel_dim=2, preserve_norm=preserve_norm)
    net = Transformer(method)
    backbone = [*net.embedding.parameters(), *net.encoder.parameters()]
    for step, length in enumerate((4, 7)):  # sequences need not be equally long in every step
        tokens = torch.randint(0, 11, (3, length), generator=torch.Generator().manual_seed(step))
        net.fork.set_step(step)
        net.zero_grad()
        sum(net.losses(net.fork(net.shared(tokens)), tokens).values()).backward()
        found = [value.grad for value in backbone]
        assert all(gradient is not None for gradient in found)
        net.zero_grad()
        shared = net.shared(tokens)
        losses = net.losses(dict.fromkeys(net.fork.tasks, shared), tokens)
        plain = torch.autograd.grad(sum(losses.values()), backbone, retain_graph=True)
        reference(net, shared, losses, method, step)
        for value, gradient in zip(backbone, found, strict=True):
            assert torch.equal(value.grad, gradient)
        assert not all(torch.allclose(a, b) for a, b in zip(found, plain, strict=True))


def test_the_channel_dim_of_a_transformer_counts() -> None:
    # All tokens of all sequences share a channel's sign, not all channels a token's.
    def signs(channel_dim: int, dim: int) -> bool:
        fork = TaskFork(("a", "b"), GradDrop(marginalize="batch+space", channel_dim=channel_dim, preserve_norm=False))
        leaf = torch.ones(2, 5, 8, requires_grad=True)
        features = fork(leaf)
        ((features["a"] * 2).sum() - features["b"].sum()).backward()
        assert leaf.grad is not None
        return bool((leaf.grad == leaf.grad.select(dim, 0).unsqueeze(dim)).all())

    assert signs(channel_dim=2, dim=1)
    assert not signs(channel_dim=2, dim=2)
    assert signs(channel_dim=1, dim=2)
    assert not signs(channel_dim=1, dim=1)


@pytest.mark.parametrize("marginalize", ["batch", "batch+space", "none"])
@pytest.mark.parametrize("batch", [1, 6])
def test_plain_features(marginalize: Marginalize, batch: int) -> None:
    torch.manual_seed(1)
    method = GradDrop(marginalize=marginalize)
    backbone, heads = nn.Linear(3, 16).double(), nn.ModuleList([nn.Linear(16, 1), nn.Linear(16, 4)]).double()
    fork = TaskFork(("score", "class"), method, seed=5)
    x = torch.randn(batch, 3, dtype=torch.float64)

    def losses(features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {task: head(features[task]).square().mean() for task, head in zip(fork.tasks, heads, strict=True)}

    fork.set_step(2)
    sum(losses(fork(backbone(x))).values()).backward()
    found = [value.grad for value in backbone.parameters()]
    backbone.zero_grad()
    shared = backbone(x)
    alone = losses(dict.fromkeys(fork.tasks, shared))
    plain = torch.autograd.grad(sum(alone.values()), backbone.weight, retain_graph=True)[0]
    reference(backbone, shared, alone, method, 2)
    for value, gradient in zip(backbone.parameters(), found, strict=True):
        assert torch.equal(value.grad, gradient)
    assert not torch.allclose(found[0], plain)


def test_it_needs_nothing_but_torch() -> None:
    others = "numba", "pyarrow", "pydantic", "yaml", "google", "matplotlib", "jinja2", "rich", "safetensors", "spconv"
    program = f"""
import sys
for name in {others}:
    sys.modules[name] = None  # an import raises
import detection3d.multitask
print(sorted(name for name in sys.modules if name.startswith("detection3d.") and ".multitask" not in name))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_readme_shows_the_same_example() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    shown = readme.split("```python\n")[1].split("```")[0]
    assert [line for line in shown.splitlines() if line] == [line for line in example().splitlines() if line]
