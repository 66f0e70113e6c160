from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MatrixShape(_message.Message):
    __slots__ = ("dims",)
    DIMS_FIELD_NUMBER: _ClassVar[int]
    dims: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dims: _Optional[_Iterable[int]] = ...) -> None: ...

class MatrixFloat(_message.Message):
    __slots__ = ("data", "shape")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedScalarFieldContainer[float]
    shape: MatrixShape
    def __init__(self, data: _Optional[_Iterable[float]] = ..., shape: _Optional[_Union[MatrixShape, _Mapping]] = ...) -> None: ...

class MatrixInt32(_message.Message):
    __slots__ = ("data", "shape")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    data: _containers.RepeatedScalarFieldContainer[int]
    shape: MatrixShape
    def __init__(self, data: _Optional[_Iterable[int]] = ..., shape: _Optional[_Union[MatrixShape, _Mapping]] = ...) -> None: ...

class Transform(_message.Message):
    __slots__ = ("transform",)
    TRANSFORM_FIELD_NUMBER: _ClassVar[int]
    transform: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, transform: _Optional[_Iterable[float]] = ...) -> None: ...

class LaserName(_message.Message):
    __slots__ = ()
    class Name(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[LaserName.Name]
        TOP: _ClassVar[LaserName.Name]
        FRONT: _ClassVar[LaserName.Name]
        SIDE_LEFT: _ClassVar[LaserName.Name]
        SIDE_RIGHT: _ClassVar[LaserName.Name]
        REAR: _ClassVar[LaserName.Name]
    UNKNOWN: LaserName.Name
    TOP: LaserName.Name
    FRONT: LaserName.Name
    SIDE_LEFT: LaserName.Name
    SIDE_RIGHT: LaserName.Name
    REAR: LaserName.Name
    def __init__(self) -> None: ...

class CameraName(_message.Message):
    __slots__ = ()
    class Name(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[CameraName.Name]
        FRONT: _ClassVar[CameraName.Name]
        FRONT_LEFT: _ClassVar[CameraName.Name]
        FRONT_RIGHT: _ClassVar[CameraName.Name]
        SIDE_LEFT: _ClassVar[CameraName.Name]
        SIDE_RIGHT: _ClassVar[CameraName.Name]
    UNKNOWN: CameraName.Name
    FRONT: CameraName.Name
    FRONT_LEFT: CameraName.Name
    FRONT_RIGHT: CameraName.Name
    SIDE_LEFT: CameraName.Name
    SIDE_RIGHT: CameraName.Name
    def __init__(self) -> None: ...

class LaserCalibration(_message.Message):
    __slots__ = ("name", "beam_inclinations", "beam_inclination_min", "beam_inclination_max", "extrinsic")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BEAM_INCLINATIONS_FIELD_NUMBER: _ClassVar[int]
    BEAM_INCLINATION_MIN_FIELD_NUMBER: _ClassVar[int]
    BEAM_INCLINATION_MAX_FIELD_NUMBER: _ClassVar[int]
    EXTRINSIC_FIELD_NUMBER: _ClassVar[int]
    name: LaserName.Name
    beam_inclinations: _containers.RepeatedScalarFieldContainer[float]
    beam_inclination_min: float
    beam_inclination_max: float
    extrinsic: Transform
    def __init__(self, name: _Optional[_Union[LaserName.Name, str]] = ..., beam_inclinations: _Optional[_Iterable[float]] = ..., beam_inclination_min: _Optional[float] = ..., beam_inclination_max: _Optional[float] = ..., extrinsic: _Optional[_Union[Transform, _Mapping]] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("name", "laser_calibrations", "stats")
    class Stats(_message.Message):
        __slots__ = ("laser_object_counts", "time_of_day", "location", "weather", "camera_object_counts")
        class ObjectCount(_message.Message):
            __slots__ = ("type", "count")
            TYPE_FIELD_NUMBER: _ClassVar[int]
            COUNT_FIELD_NUMBER: _ClassVar[int]
            type: Label.Type
            count: int
            def __init__(self, type: _Optional[_Union[Label.Type, str]] = ..., count: _Optional[int] = ...) -> None: ...
        LASER_OBJECT_COUNTS_FIELD_NUMBER: _ClassVar[int]
        TIME_OF_DAY_FIELD_NUMBER: _ClassVar[int]
        LOCATION_FIELD_NUMBER: _ClassVar[int]
        WEATHER_FIELD_NUMBER: _ClassVar[int]
        CAMERA_OBJECT_COUNTS_FIELD_NUMBER: _ClassVar[int]
        laser_object_counts: _containers.RepeatedCompositeFieldContainer[Context.Stats.ObjectCount]
        time_of_day: str
        location: str
        weather: str
        camera_object_counts: _containers.RepeatedCompositeFieldContainer[Context.Stats.ObjectCount]
        def __init__(self, laser_object_counts: _Optional[_Iterable[_Union[Context.Stats.ObjectCount, _Mapping]]] = ..., time_of_day: _Optional[str] = ..., location: _Optional[str] = ..., weather: _Optional[str] = ..., camera_object_counts: _Optional[_Iterable[_Union[Context.Stats.ObjectCount, _Mapping]]] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    LASER_CALIBRATIONS_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    name: str
    laser_calibrations: _containers.RepeatedCompositeFieldContainer[LaserCalibration]
    stats: Context.Stats
    def __init__(self, name: _Optional[str] = ..., laser_calibrations: _Optional[_Iterable[_Union[LaserCalibration, _Mapping]]] = ..., stats: _Optional[_Union[Context.Stats, _Mapping]] = ...) -> None: ...

class RangeImage(_message.Message):
    __slots__ = ("range_image", "range_image_compressed", "camera_projection_compressed", "range_image_pose_compressed", "range_image_flow_compressed", "segmentation_label_compressed")
    RANGE_IMAGE_FIELD_NUMBER: _ClassVar[int]
    RANGE_IMAGE_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    CAMERA_PROJECTION_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    RANGE_IMAGE_POSE_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    RANGE_IMAGE_FLOW_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    SEGMENTATION_LABEL_COMPRESSED_FIELD_NUMBER: _ClassVar[int]
    range_image: MatrixFloat
    range_image_compressed: bytes
    camera_projection_compressed: bytes
    range_image_pose_compressed: bytes
    range_image_flow_compressed: bytes
    segmentation_label_compressed: bytes
    def __init__(self, range_image: _Optional[_Union[MatrixFloat, _Mapping]] = ..., range_image_compressed: _Optional[bytes] = ..., camera_projection_compressed: _Optional[bytes] = ..., range_image_pose_compressed: _Optional[bytes] = ..., range_image_flow_compressed: _Optional[bytes] = ..., segmentation_label_compressed: _Optional[bytes] = ...) -> None: ...

class Laser(_message.Message):
    __slots__ = ("name", "ri_return1", "ri_return2")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RI_RETURN1_FIELD_NUMBER: _ClassVar[int]
    RI_RETURN2_FIELD_NUMBER: _ClassVar[int]
    name: LaserName.Name
    ri_return1: RangeImage
    ri_return2: RangeImage
    def __init__(self, name: _Optional[_Union[LaserName.Name, str]] = ..., ri_return1: _Optional[_Union[RangeImage, _Mapping]] = ..., ri_return2: _Optional[_Union[RangeImage, _Mapping]] = ...) -> None: ...

class Polygon2dProto(_message.Message):
    __slots__ = ("x", "y", "id")
    X_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    x: _containers.RepeatedScalarFieldContainer[float]
    y: _containers.RepeatedScalarFieldContainer[float]
    id: str
    def __init__(self, x: _Optional[_Iterable[float]] = ..., y: _Optional[_Iterable[float]] = ..., id: _Optional[str] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("box", "metadata", "type", "id", "detection_difficulty_level", "tracking_difficulty_level", "num_lidar_points_in_box", "association", "most_visible_camera_name", "camera_synced_box", "num_top_lidar_points_in_box")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNKNOWN: _ClassVar[Label.Type]
        TYPE_VEHICLE: _ClassVar[Label.Type]
        TYPE_PEDESTRIAN: _ClassVar[Label.Type]
        TYPE_SIGN: _ClassVar[Label.Type]
        TYPE_CYCLIST: _ClassVar[Label.Type]
    TYPE_UNKNOWN: Label.Type
    TYPE_VEHICLE: Label.Type
    TYPE_PEDESTRIAN: Label.Type
    TYPE_SIGN: Label.Type
    TYPE_CYCLIST: Label.Type
    class DifficultyLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Label.DifficultyLevel]
        LEVEL_1: _ClassVar[Label.DifficultyLevel]
        LEVEL_2: _ClassVar[Label.DifficultyLevel]
    UNKNOWN: Label.DifficultyLevel
    LEVEL_1: Label.DifficultyLevel
    LEVEL_2: Label.DifficultyLevel
    class Box(_message.Message):
        __slots__ = ("center_x", "center_y", "center_z", "width", "length", "height", "heading")
        CENTER_X_FIELD_NUMBER: _ClassVar[int]
        CENTER_Y_FIELD_NUMBER: _ClassVar[int]
        CENTER_Z_FIELD_NUMBER: _ClassVar[int]
        WIDTH_FIELD_NUMBER: _ClassVar[int]
        LENGTH_FIELD_NUMBER: _ClassVar[int]
        HEIGHT_FIELD_NUMBER: _ClassVar[int]
        HEADING_FIELD_NUMBER: _ClassVar[int]
        center_x: float
        center_y: float
        center_z: float
        width: float
        length: float
        height: float
        heading: float
        def __init__(self, center_x: _Optional[float] = ..., center_y: _Optional[float] = ..., center_z: _Optional[float] = ..., width: _Optional[float] = ..., length: _Optional[float] = ..., height: _Optional[float] = ..., heading: _Optional[float] = ...) -> None: ...
    class Metadata(_message.Message):
        __slots__ = ("speed_x", "speed_y", "accel_x", "accel_y", "speed_z", "accel_z")
        SPEED_X_FIELD_NUMBER: _ClassVar[int]
        SPEED_Y_FIELD_NUMBER: _ClassVar[int]
        ACCEL_X_FIELD_NUMBER: _ClassVar[int]
        ACCEL_Y_FIELD_NUMBER: _ClassVar[int]
        SPEED_Z_FIELD_NUMBER: _ClassVar[int]
        ACCEL_Z_FIELD_NUMBER: _ClassVar[int]
        speed_x: float
        speed_y: float
        accel_x: float
        accel_y: float
        speed_z: float
        accel_z: float
        def __init__(self, speed_x: _Optional[float] = ..., speed_y: _Optional[float] = ..., accel_x: _Optional[float] = ..., accel_y: _Optional[float] = ..., speed_z: _Optional[float] = ..., accel_z: _Optional[float] = ...) -> None: ...
    class Association(_message.Message):
        __slots__ = ("laser_object_id",)
        LASER_OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
        laser_object_id: str
        def __init__(self, laser_object_id: _Optional[str] = ...) -> None: ...
    BOX_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DETECTION_DIFFICULTY_LEVEL_FIELD_NUMBER: _ClassVar[int]
    TRACKING_DIFFICULTY_LEVEL_FIELD_NUMBER: _ClassVar[int]
    NUM_LIDAR_POINTS_IN_BOX_FIELD_NUMBER: _ClassVar[int]
    ASSOCIATION_FIELD_NUMBER: _ClassVar[int]
    MOST_VISIBLE_CAMERA_NAME_FIELD_NUMBER: _ClassVar[int]
    CAMERA_SYNCED_BOX_FIELD_NUMBER: _ClassVar[int]
    NUM_TOP_LIDAR_POINTS_IN_BOX_FIELD_NUMBER: _ClassVar[int]
    box: Label.Box
    metadata: Label.Metadata
    type: Label.Type
    id: str
    detection_difficulty_level: Label.DifficultyLevel
    tracking_difficulty_level: Label.DifficultyLevel
    num_lidar_points_in_box: int
    association: Label.Association
    most_visible_camera_name: str
    camera_synced_box: Label.Box
    num_top_lidar_points_in_box: int
    def __init__(self, box: _Optional[_Union[Label.Box, _Mapping]] = ..., metadata: _Optional[_Union[Label.Metadata, _Mapping]] = ..., type: _Optional[_Union[Label.Type, str]] = ..., id: _Optional[str] = ..., detection_difficulty_level: _Optional[_Union[Label.DifficultyLevel, str]] = ..., tracking_difficulty_level: _Optional[_Union[Label.DifficultyLevel, str]] = ..., num_lidar_points_in_box: _Optional[int] = ..., association: _Optional[_Union[Label.Association, _Mapping]] = ..., most_visible_camera_name: _Optional[str] = ..., camera_synced_box: _Optional[_Union[Label.Box, _Mapping]] = ..., num_top_lidar_points_in_box: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("context", "timestamp_micros", "pose", "lasers", "laser_labels", "no_label_zones")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_MICROS_FIELD_NUMBER: _ClassVar[int]
    POSE_FIELD_NUMBER: _ClassVar[int]
    LASERS_FIELD_NUMBER: _ClassVar[int]
    LASER_LABELS_FIELD_NUMBER: _ClassVar[int]
    NO_LABEL_ZONES_FIELD_NUMBER: _ClassVar[int]
    context: Context
    timestamp_micros: int
    pose: Transform
    lasers: _containers.RepeatedCompositeFieldContainer[Laser]
    laser_labels: _containers.RepeatedCompositeFieldContainer[Label]
    no_label_zones: _containers.RepeatedCompositeFieldContainer[Polygon2dProto]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., timestamp_micros: _Optional[int] = ..., pose: _Optional[_Union[Transform, _Mapping]] = ..., lasers: _Optional[_Iterable[_Union[Laser, _Mapping]]] = ..., laser_labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., no_label_zones: _Optional[_Iterable[_Union[Polygon2dProto, _Mapping]]] = ...) -> None: ...

class Object(_message.Message):
    __slots__ = ("object", "score", "overlap_with_nlz", "context_name", "frame_timestamp_micros", "camera_name")
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_WITH_NLZ_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_NAME_FIELD_NUMBER: _ClassVar[int]
    FRAME_TIMESTAMP_MICROS_FIELD_NUMBER: _ClassVar[int]
    CAMERA_NAME_FIELD_NUMBER: _ClassVar[int]
    object: Label
    score: float
    overlap_with_nlz: bool
    context_name: str
    frame_timestamp_micros: int
    camera_name: CameraName.Name
    def __init__(self, object: _Optional[_Union[Label, _Mapping]] = ..., score: _Optional[float] = ..., overlap_with_nlz: bool = ..., context_name: _Optional[str] = ..., frame_timestamp_micros: _Optional[int] = ..., camera_name: _Optional[_Union[CameraName.Name, str]] = ...) -> None: ...

class Submission(_message.Message):
    __slots__ = ("task", "unique_method_name", "authors", "affiliation", "description", "method_link", "number_past_frames_exclude_current", "number_future_frames_exclude_current", "inference_results", "sensor_type", "account_name", "object_types", "latency_second", "docker_image_source")
    class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Submission.Task]
        DETECTION_2D: _ClassVar[Submission.Task]
        DETECTION_3D: _ClassVar[Submission.Task]
        TRACKING_2D: _ClassVar[Submission.Task]
        TRACKING_3D: _ClassVar[Submission.Task]
        DOMAIN_ADAPTATION: _ClassVar[Submission.Task]
        CAMERA_ONLY_DETECTION_3D: _ClassVar[Submission.Task]
    UNKNOWN: Submission.Task
    DETECTION_2D: Submission.Task
    DETECTION_3D: Submission.Task
    TRACKING_2D: Submission.Task
    TRACKING_3D: Submission.Task
    DOMAIN_ADAPTATION: Submission.Task
    CAMERA_ONLY_DETECTION_3D: Submission.Task
    class SensorType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        INVALID: _ClassVar[Submission.SensorType]
        LIDAR_ALL: _ClassVar[Submission.SensorType]
        LIDAR_TOP: _ClassVar[Submission.SensorType]
        CAMERA_ALL: _ClassVar[Submission.SensorType]
        CAMERA_LIDAR_TOP: _ClassVar[Submission.SensorType]
        CAMERA_LIDAR_ALL: _ClassVar[Submission.SensorType]
    INVALID: Submission.SensorType
    LIDAR_ALL: Submission.SensorType
    LIDAR_TOP: Submission.SensorType
    CAMERA_ALL: Submission.SensorType
    CAMERA_LIDAR_TOP: Submission.SensorType
    CAMERA_LIDAR_ALL: Submission.SensorType
    TASK_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_METHOD_NAME_FIELD_NUMBER: _ClassVar[int]
    AUTHORS_FIELD_NUMBER: _ClassVar[int]
    AFFILIATION_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    METHOD_LINK_FIELD_NUMBER: _ClassVar[int]
    NUMBER_PAST_FRAMES_EXCLUDE_CURRENT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FUTURE_FRAMES_EXCLUDE_CURRENT_FIELD_NUMBER: _ClassVar[int]
    INFERENCE_RESULTS_FIELD_NUMBER: _ClassVar[int]
    SENSOR_TYPE_FIELD_NUMBER: _ClassVar[int]
    ACCOUNT_NAME_FIELD_NUMBER: _ClassVar[int]
    OBJECT_TYPES_FIELD_NUMBER: _ClassVar[int]
    LATENCY_SECOND_FIELD_NUMBER: _ClassVar[int]
    DOCKER_IMAGE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    task: Submission.Task
    unique_method_name: str
    authors: _containers.RepeatedScalarFieldContainer[str]
    affiliation: str
    description: str
    method_link: str
    number_past_frames_exclude_current: int
    number_future_frames_exclude_current: int
    inference_results: Objects
    sensor_type: Submission.SensorType
    account_name: str
    object_types: _containers.RepeatedScalarFieldContainer[Label.Type]
    latency_second: float
    docker_image_source: str
    def __init__(self, task: _Optional[_Union[Submission.Task, str]] = ..., unique_method_name: _Optional[str] = ..., authors: _Optional[_Iterable[str]] = ..., affiliation: _Optional[str] = ..., description: _Optional[str] = ..., method_link: _Optional[str] = ..., number_past_frames_exclude_current: _Optional[int] = ..., number_future_frames_exclude_current: _Optional[int] = ..., inference_results: _Optional[_Union[Objects, _Mapping]] = ..., sensor_type: _Optional[_Union[Submission.SensorType, str]] = ..., account_name: _Optional[str] = ..., object_types: _Optional[_Iterable[_Union[Label.Type, str]]] = ..., latency_second: _Optional[float] = ..., docker_image_source: _Optional[str] = ...) -> None: ...

class Objects(_message.Message):
    __slots__ = ("objects",)
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: _containers.RepeatedCompositeFieldContainer[Object]
    def __init__(self, objects: _Optional[_Iterable[_Union[Object, _Mapping]]] = ...) -> None: ...

class Breakdown(_message.Message):
    __slots__ = ()
    class GeneratorId(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[Breakdown.GeneratorId]
        ONE_SHARD: _ClassVar[Breakdown.GeneratorId]
        OBJECT_TYPE: _ClassVar[Breakdown.GeneratorId]
        RANGE: _ClassVar[Breakdown.GeneratorId]
        TIME_OF_DAY: _ClassVar[Breakdown.GeneratorId]
        LOCATION: _ClassVar[Breakdown.GeneratorId]
        WEATHER: _ClassVar[Breakdown.GeneratorId]
        VELOCITY: _ClassVar[Breakdown.GeneratorId]
        ALL_BUT_SIGN: _ClassVar[Breakdown.GeneratorId]
        SIZE: _ClassVar[Breakdown.GeneratorId]
        CAMERA: _ClassVar[Breakdown.GeneratorId]
    UNKNOWN: Breakdown.GeneratorId
    ONE_SHARD: Breakdown.GeneratorId
    OBJECT_TYPE: Breakdown.GeneratorId
    RANGE: Breakdown.GeneratorId
    TIME_OF_DAY: Breakdown.GeneratorId
    LOCATION: Breakdown.GeneratorId
    WEATHER: Breakdown.GeneratorId
    VELOCITY: Breakdown.GeneratorId
    ALL_BUT_SIGN: Breakdown.GeneratorId
    SIZE: Breakdown.GeneratorId
    CAMERA: Breakdown.GeneratorId
    def __init__(self) -> None: ...

class MatcherProto(_message.Message):
    __slots__ = ()
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNKNOWN: _ClassVar[MatcherProto.Type]
        TYPE_HUNGARIAN: _ClassVar[MatcherProto.Type]
        TYPE_SCORE_FIRST: _ClassVar[MatcherProto.Type]
        TYPE_HUNGARIAN_TEST_ONLY: _ClassVar[MatcherProto.Type]
    TYPE_UNKNOWN: MatcherProto.Type
    TYPE_HUNGARIAN: MatcherProto.Type
    TYPE_SCORE_FIRST: MatcherProto.Type
    TYPE_HUNGARIAN_TEST_ONLY: MatcherProto.Type
    def __init__(self) -> None: ...

class Difficulty(_message.Message):
    __slots__ = ("levels",)
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    levels: _containers.RepeatedScalarFieldContainer[Label.DifficultyLevel]
    def __init__(self, levels: _Optional[_Iterable[_Union[Label.DifficultyLevel, str]]] = ...) -> None: ...

class Config(_message.Message):
    __slots__ = ("score_cutoffs", "num_desired_score_cutoffs", "breakdown_generator_ids", "difficulties", "matcher_type", "iou_thresholds", "box_type", "desired_recall_delta", "min_precision", "min_heading_accuracy", "include_details_in_measurements", "let_metric_config")
    class BoxType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNKNOWN: _ClassVar[Config.BoxType]
        TYPE_3D: _ClassVar[Config.BoxType]
        TYPE_2D: _ClassVar[Config.BoxType]
        TYPE_AA_2D: _ClassVar[Config.BoxType]
    TYPE_UNKNOWN: Config.BoxType
    TYPE_3D: Config.BoxType
    TYPE_2D: Config.BoxType
    TYPE_AA_2D: Config.BoxType
    class LongitudinalErrorTolerantConfig(_message.Message):
        __slots__ = ("enabled",)
        ENABLED_FIELD_NUMBER: _ClassVar[int]
        enabled: bool
        def __init__(self, enabled: bool = ...) -> None: ...
    SCORE_CUTOFFS_FIELD_NUMBER: _ClassVar[int]
    NUM_DESIRED_SCORE_CUTOFFS_FIELD_NUMBER: _ClassVar[int]
    BREAKDOWN_GENERATOR_IDS_FIELD_NUMBER: _ClassVar[int]
    DIFFICULTIES_FIELD_NUMBER: _ClassVar[int]
    MATCHER_TYPE_FIELD_NUMBER: _ClassVar[int]
    IOU_THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    BOX_TYPE_FIELD_NUMBER: _ClassVar[int]
    DESIRED_RECALL_DELTA_FIELD_NUMBER: _ClassVar[int]
    MIN_PRECISION_FIELD_NUMBER: _ClassVar[int]
    MIN_HEADING_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_DETAILS_IN_MEASUREMENTS_FIELD_NUMBER: _ClassVar[int]
    LET_METRIC_CONFIG_FIELD_NUMBER: _ClassVar[int]
    score_cutoffs: _containers.RepeatedScalarFieldContainer[float]
    num_desired_score_cutoffs: int
    breakdown_generator_ids: _containers.RepeatedScalarFieldContainer[Breakdown.GeneratorId]
    difficulties: _containers.RepeatedCompositeFieldContainer[Difficulty]
    matcher_type: MatcherProto.Type
    iou_thresholds: _containers.RepeatedScalarFieldContainer[float]
    box_type: Config.BoxType
    desired_recall_delta: float
    min_precision: float
    min_heading_accuracy: float
    include_details_in_measurements: bool
    let_metric_config: Config.LongitudinalErrorTolerantConfig
    def __init__(self, score_cutoffs: _Optional[_Iterable[float]] = ..., num_desired_score_cutoffs: _Optional[int] = ..., breakdown_generator_ids: _Optional[_Iterable[_Union[Breakdown.GeneratorId, str]]] = ..., difficulties: _Optional[_Iterable[_Union[Difficulty, _Mapping]]] = ..., matcher_type: _Optional[_Union[MatcherProto.Type, str]] = ..., iou_thresholds: _Optional[_Iterable[float]] = ..., box_type: _Optional[_Union[Config.BoxType, str]] = ..., desired_recall_delta: _Optional[float] = ..., min_precision: _Optional[float] = ..., min_heading_accuracy: _Optional[float] = ..., include_details_in_measurements: bool = ..., let_metric_config: _Optional[_Union[Config.LongitudinalErrorTolerantConfig, _Mapping]] = ...) -> None: ...
