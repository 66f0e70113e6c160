"""A prepared frame as a training step sees it: points chosen and samples augmented as a config says."""

from dataclasses import replace

import numpy as np
import torch

from detection3d.config import Config
from detection3d.data.augment import augment, draw_similarity
from detection3d.data.collate import collate
from detection3d.data.counter_hash import permutation
from detection3d.data.store import Store
from detection3d.data.unpack import unpack
from detection3d.errors import DataError
from detection3d.geometry.host.poses import zone_in_vehicle_frame
from detection3d.types.scene import Boxes, Frame
from detection3d.types.tensors import BoxLabels


def augmented_frame(store: Store, number: int, config: Config, epoch: int = 0) -> Frame:
    """Return a frame of a store as training sees it in an epoch.

    Args:
        store: the prepared store.
        number: of the frame.
        config: the run; its seed, `data.returns`, `data.drop_no_label_zone_points` and augmentation count.
        epoch: the augmentation differs from one to the next.

    Returns:
        The frame in the augmented sample's own coordinates, with the identity as its pose: mirrored and scaled frames
        have no place in the world. Labelled counts of points stay as they were.

    Raises:
        DataError: the frame has no labels, which training refuses.
    """
    before = store.frame(number)
    if before.labels is None:
        name, timestamp = before.key
        reason = (
            f"frame {name} at {timestamp} has no labels, so training would refuse it; inspect it without --augmented"
        )
        raise DataError(store.root, reason)
    order = permutation(config.seed, epoch, len(store))
    sample = epoch * len(store) + int(np.flatnonzero(order == number)[0])
    batch = collate(store, [number], [sample])
    # A column with the points' places goes along, which tells afterwards which are left; float32 holds 2^24 exactly.
    packed = batch.points
    places = torch.arange(len(packed.xyz), dtype=torch.float32)
    points = unpack(packed)
    points = replace(points, values=torch.cat((points.values, places[:, None]), dim=1))
    keep = _kept(before, config)
    points = replace(points, values=points.values[keep], batch_index=points.batch_index[keep])
    points, labels = augment(
        points, batch.labels, config=config.augmentation, seed=config.seed, sample_index=batch.sample_index
    )
    left = points.values[:, 5].to(torch.int64).numpy()
    similarity = draw_similarity(config.augmentation, config.seed, batch.sample_index)
    linear, shift = similarity.linear[0].double().numpy(), similarity.translation[0].double().numpy()
    return replace(
        before,
        pose=np.eye(4),
        points=points.values[:, :5].numpy(),
        lidar=before.lidar[left],
        return_number=before.return_number[left],
        in_no_label_zone=before.in_no_label_zone[left],
        labels=_boxes(labels, before.labels),
        no_label_zones=tuple(
            zone_in_vehicle_frame(zone, before.pose) @ linear.T + shift[:2] for zone in before.no_label_zones
        ),
    )


def _kept(frame: Frame, config: Config) -> torch.Tensor:
    """Tell which points `unpack` keeps for the config, bool [N]."""
    keep = np.isin(frame.return_number, config.data.returns)
    if config.data.drop_no_label_zone_points:
        keep &= ~frame.in_no_label_zone
    return torch.from_numpy(keep)


def _boxes(labels: BoxLabels, before: Boxes) -> Boxes:
    count = len(before)
    velocity = before.velocity.copy()
    velocity[:, :2] = labels.velocity[0, :count].numpy()
    return replace(before, boxes=labels.boxes[0, :count].numpy(), velocity=velocity)
