# A bevkd student trained and evaluated by mmdet3d: python tools/train.py examples/mmdet3d/student.py
# Data: bevkd data synth data/quickstart --scenes 20 --val-scenes 4 --seed 0 --profile quickstart
#       bevkd data infos data/quickstart --out-dir data/quickstart
# Or nuScenes with mmdet3d's own info files: BEVKD_RECIPE=recipes/orin_small.yaml BEVKD_DATA=data/nuscenes/
custom_imports = dict(imports=["bevkd_deploy.mmdet3d"])
default_scope = "mmdet3d"

recipe = "{{$BEVKD_RECIPE:recipes/quickstart.yaml}}"
data_root = "{{$BEVKD_DATA:data/quickstart/}}"
sweeps = 0  # as data.sweeps of the recipe
class_names = [
    "car", "truck", "trailer", "bus", "construction_vehicle", "bicycle", "motorcycle", "pedestrian", "traffic_cone",
    "barrier",
]  # fmt: skip

model = dict(type="BevkdStudent", recipe=recipe)

load_sensors = [
    dict(type="LoadPointsFromFile", coord_type="LIDAR", load_dim=5, use_dim=5),
    dict(
        type="LoadPointsFromMultiSweeps",
        sweeps_num=sweeps,
        load_dim=5,
        use_dim=[0, 1, 2, 3, 4],
        remove_close=True,
        test_mode=True,
    ),
    dict(type="LoadMultiViewImageFromFiles", num_views=6),
]
inputs = dict(type="BevkdInputs", recipe=recipe, classes=class_names, image_channels="bgr")
train_pipeline = [
    *load_sensors,
    dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
    dict(**inputs, augment=True),
]
test_pipeline = [*load_sensors, inputs]

dataset = dict(
    type="NuScenesDataset",
    data_root=data_root,
    data_prefix=dict(pts="samples/LIDAR_TOP", sweeps="sweeps/LIDAR_TOP", **{name: f"samples/{name}" for name in (
        "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT",
    )}),
    metainfo=dict(classes=class_names),
    modality=dict(use_camera=True, use_lidar=True),
    use_valid_flag=True,
    box_type_3d="LiDAR",
)  # fmt: skip
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(**dataset, ann_file="nuscenes_infos_train.pkl", pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(**dataset, ann_file="nuscenes_infos_val.pkl", pipeline=test_pipeline, test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="NuScenesMetric", data_root=data_root, ann_file=data_root + "nuscenes_infos_val.pkl", metric="bbox"
)
test_evaluator = val_evaluator

epochs = 5
train_cfg = dict(by_epoch=True, max_epochs=epochs, val_interval=epochs)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=4e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=10.0, norm_type=2),
)
param_scheduler = [
    dict(type="OneCycleLR", eta_max=4e-3, pct_start=0.2, total_steps=epochs, by_epoch=True, convert_to_iter_based=True)
]
default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1), logger=dict(type="LoggerHook", interval=10))
custom_hooks = [dict(type="BevkdRunHook")]
