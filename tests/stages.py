"""A first stage that takes seconds: digits, of which two classes are held out."""

from cyclofocal.lab.data.config import PublishedData
from cyclofocal.lab.oltr.stage_recipe import StageRecipe

FIRST = StageRecipe(
    name="digits-1",
    title="digits, stage 1",
    data=PublishedData("digits", subset="long-tailed", imbalance=30, head_images=60, test_per_class=30),
    held_out_classes=2,
    threshold=0.5,
    model="small-convnet",
    width=4,
    image_size=8,
    channels=1,
    epochs=2,
    batch_size=35,
    learning_rate=0.1,
    momentum=0.9,
)
