# The same student, taught by the recipe's teacher: python tools/train.py examples/mmdet3d/distillation.py
_base_ = "./student.py"

model = dict(type="BevkdDistillation")
train_dataloader = dict(
    dataset=dict(
        pipeline=[
            *_base_.load_sensors,
            dict(type="LoadAnnotations3D", with_bbox_3d=True, with_label_3d=True),
            dict(**_base_.inputs, augment=True, teacher=True),
        ]
    )
)
