"""Tensors that are parts of one: values, shapes and strides stay, and what is done to the one is done to them."""

import copy
import io

import torch
from torch import nn

from detection3d.training.packing import ALIGNMENT, pack, room_for


def mixed() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, 4, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    return [torch.randn((), generator=generator), image, torch.randn(0, 3), torch.randn(7, generator=generator)]


def test_values_shapes_and_strides_stay() -> None:
    tensors = mixed()
    before = [tensor.clone() for tensor in tensors]
    strides = [tensor.stride() for tensor in tensors]
    flat = pack(tensors)
    for tensor, value, stride in zip(tensors, before, strides, strict=True):
        assert torch.equal(tensor, value)
        assert tensor.stride() == stride
        assert tensor.data_ptr() % ALIGNMENT == flat.data_ptr() % ALIGNMENT or not tensor.numel()
    flat.mul_(2)
    for tensor, value in zip(tensors, before, strict=True):
        assert torch.equal(tensor, 2 * value)


def test_room_is_laid_out_as_what_is_packed() -> None:
    tensors = mixed()
    together, parts = room_for(tensors)
    for part, tensor in zip(parts, tensors, strict=True):
        part.copy_(tensor)
    assert torch.equal(pack(tensors), together)


def test_a_module_whose_tensors_are_packed_loads_saves_and_is_copied_as_before() -> None:
    module, other = nn.BatchNorm2d(5), nn.BatchNorm2d(5)
    module(torch.randn(3, 5, 2, 2))
    flat = pack([module.weight, module.bias, *(buffer for buffer in module.buffers() if buffer.is_floating_point())])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.testing.assert_close(other.state_dict(), module.state_dict())
    twin = copy.deepcopy(module)
    flat.add_(1)
    assert torch.equal(twin.weight + 1, module.weight)
    assert module.running_mean is not None
    assert other.running_mean is not None
    assert torch.equal(other.running_mean + 1, module.running_mean)
