"""LiDAR 3D detection with gradient sign dropout.

Conventions, which hold everywhere in the package:

- **Frames and units.** The vehicle frame has x forward, y left and z up. Lengths are metres, angles radians, times
  seconds; timestamps are microseconds. A pose is the float64 [4, 4] matrix that takes vehicle to global coordinates.
- **Boxes** are 7 numbers `(x, y, z, length, width, height, heading)`: the geometric centre, the size along the box's
  own axes, and the heading about +z, counted from +x and wrapped to [-pi, pi).
- **Object types** are Waymo's numbers: UNKNOWN 0, VEHICLE 1, PEDESTRIAN 2, SIGN 3, CYCLIST 4.
- **Points** are `(x, y, z, intensity, elongation)`, raw; the model squashes intensity and elongation with tanh.
- **Voxel indices** are `(batch, z, y, x)`. Bird's-eye-view (BEV) tensors are [B, C, H, W], H along y and W along x.
- **Letters in shapes**: B batch, N points, V voxels, C channels, H W BEV rows and columns, M boxes, K tasks.

Importing the package loads nothing heavy: import the part that is needed, such as `detection3d.evaluation`.
"""

__version__ = "0.1.0"
