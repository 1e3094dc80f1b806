"""The training section: ranges, class names and what counts as off."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bevkd_deploy.contracts.classes import CLASS_NAMES
from bevkd_deploy.contracts.recipe_loader import load_recipe, shipped_recipes
from bevkd_deploy.contracts.recipe_training import AugmentationConfig, ImageAugmentationConfig, PasteConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (AugmentationConfig, {"scale": (1.1, 0.9)}, r"scale must be \[low, high\] with 0 < .*, got \[1.1, 0.9\]"),
        (AugmentationConfig, {"scale": (0.0, 1.0)}, "0 < low"),
        (AugmentationConfig, {"translation_m": (0.5, -0.5, 0.5)}, "greater than or equal to 0"),
        (AugmentationConfig, {"translation_m": (0.5, 0.5)}, "Field required"),
        (ImageAugmentationConfig, {"scale": (1.2, 1.0)}, r"got \[1.2, 1.0\]"),
        (ImageAugmentationConfig, {"bottom_crop": (0.2, 0.1)}, r"low <= high < 1, got \[0.2, 0.1\]"),
        (ImageAugmentationConfig, {"bottom_crop": (0.0, 1.0)}, "low <= high < 1"),
        (PasteConfig, {"up_to": {"pedestrain": 2}}, r"no class 'pedestrain'\. Did you mean 'pedestrian'\? "),
        (PasteConfig, {"up_to": {"car": 0}}, "greater than 0"),
        (PasteConfig, {"until_fraction": 1.5}, "less than or equal to 1"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(section: type, values: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(**values)


def test_what_is_off() -> None:
    assert AugmentationConfig().bev_is_off and AugmentationConfig().views_are_off
    assert AugmentationConfig(image=ImageAugmentationConfig()).views_are_off
    views = AugmentationConfig(image=ImageAugmentationConfig(flip=True), paste=PasteConfig())
    assert views.bev_is_off and not views.views_are_off
    assert not AugmentationConfig(translation_m=(0.0, 0.0, 0.1)).bev_is_off
    assert set(PasteConfig().up_to) == set(CLASS_NAMES)


def test_a_recipe_reads_all_of_it() -> None:
    augmentation = (
        "student.train.augmentation={translation_m: [0.5, 0.5, 0.5], image: {scale: [0.9, 1.2], flip: true}, "
        "paste: {up_to: {car: 2}, until_fraction: 0.8}}"
    )
    train = load_recipe("quickstart", ["student.train.class_balanced=true", augmentation]).recipe.student.train
    assert train.class_balanced and train.augmentation.translation_m == (0.5, 0.5, 0.5)
    assert train.augmentation.image == ImageAugmentationConfig(scale=(0.9, 1.2), flip=True)
    assert train.augmentation.paste == PasteConfig(up_to={"car": 2}, until_fraction=0.8)
    assert load_recipe("quickstart", ["student.train.augmentation={paste: {}}"]).recipe.student.train.augmentation == (
        AugmentationConfig(paste=PasteConfig())
    )


def test_the_full_size_recipe_augments_as_bevfusion_does() -> None:
    recipe = load_recipe(shipped_recipes()["orin_small"]).recipe
    assert recipe.teacher.train is not None
    for train in (recipe.teacher.train, recipe.student.train):
        assert train.class_balanced
        image = train.augmentation.image
        assert image is not None and image.flip
        # BEVFusion resizes 1600 pixels by 0.38 to 0.55; the deployed fit is 704 / 1600 = 0.44.
        assert image.scale == pytest.approx((0.38 / 0.44, 0.55 / 0.44), abs=0.005)
        assert image.rotation_rad == pytest.approx(5.4 * 3.14159 / 180, abs=0.001)
        assert train.augmentation.translation_m == (0.5, 0.5, 0.5)
