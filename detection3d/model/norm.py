"""Batch normalisation that also takes one row or none: a frame may hold a single voxel."""

from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-3  # SECOND's values: activations of sparse maps are small, and statistics move slowly
MOMENTUM = 0.01


class BatchNorm(nn.BatchNorm2d):
    """Normalise the channels of [V, C] or [B, C, H, W].

    With fewer than two values to a channel there is no variance; such a batch is normalised with the running
    statistics and leaves them alone. (torch raises instead.)
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=EPSILON, momentum=MOMENTUM)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; the shape stays."""
        training = self.training and input.numel() > input.shape[1]
        if self.training and training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, training, MOMENTUM, self.eps
        )
