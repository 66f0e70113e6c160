"""Frozen dataclasses that the parts exchange: `scene` for numpy data, `tensors` for torch data.

Nothing is re-exported here, so that reading data or evaluating does not load torch.
"""
