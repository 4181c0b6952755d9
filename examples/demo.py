"""The demo: draw a street, explain it, and write the picture and the panel into a folder.

The model's weights are random until a trained one comes with the package, so the heat shows how the network is wired and
nothing that it has learned; the panel says so.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import glowmap

ROWS, COLUMNS = 300, 400


def street() -> Image.Image:
    """Draw a street at four times the size, so that reducing it smooths the edges."""
    picture = Image.new("RGB", (4 * COLUMNS, 4 * ROWS), (176, 209, 240))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 640, 1600, 1200), fill=(104, 106, 112))  # road
    draw.rectangle((0, 600, 1600, 660), fill=(170, 168, 160))  # pavement
    for left, width, height, colour in (
        (60, 380, 430, "#a2664e"),
        (480, 300, 520, "#c9b18c"),
        (1180, 360, 380, "#8d93a6"),
    ):
        draw.rectangle((left, 620 - height, left + width, 620), fill=colour)
        for x in range(left + 40, left + width - 60, 90):
            for y in range(660 - height, 520, 110):
                draw.rectangle((x, y, x + 50, y + 65), fill="#3f4a5a")
    draw.rectangle((950, 430, 985, 640), fill="#6b4a32")  # a tree
    draw.ellipse((850, 220, 1090, 480), fill="#4c7a3d")
    for left, top, colour in ((180, 700, "#c8342b"), (980, 820, "#e8e4da")):
        draw.rounded_rectangle((left, top + 90, left + 480, top + 210), 40, fill=colour)  # a car
        draw.polygon([(left + 90, top + 95), (left + 160, top), (left + 340, top), (left + 410, top + 95)], fill=colour)
        draw.polygon(
            [(left + 120, top + 90), (left + 172, top + 18), (left + 328, top + 18), (left + 380, top + 90)],
            fill="#24303c",
        )
        for wheel in (left + 110, left + 370):
            draw.ellipse((wheel - 55, top + 155, wheel + 55, top + 265), fill="#1b1c1f")
            draw.ellipse((wheel - 24, top + 186, wheel + 24, top + 234), fill="#9a9ea6")
    return picture.resize((COLUMNS, ROWS), Image.Resampling.LANCZOS)


def main(folder: Path) -> None:
    """Write scene.png and panel.png, and say what they show."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = street()
    picture.save(folder / "scene.png")
    model = glowmap.load("deeplabv3_resnet50", weights="random", size=(ROWS, COLUMNS), seed=0)
    car = np.zeros((ROWS, COLUMNS))
    car[175:245, 45:165] = 1  # an untrained model predicts no cars, so the pixels of the red one are given
    explanations = glowmap.explain(
        model,
        picture,
        target=[glowmap.targets.Pixels("car", car)],
        layer=[f"backbone.layer{number}" for number in (1, 2, 3, 4)],
        method="layer_cam",
    )
    print("A generated picture and a model with RANDOM weights: the heat shows its wiring, nothing it has learned.")
    print(f"wrote {folder / 'scene.png'} and {explanations.save(folder / 'panel.png')}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-out"))
