"""Small generated data sets in the published formats, written without any code of the package, and loaded by it."""

import gzip
import io
import json
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from cyclofocal.lab.data import load as lab_data
from cyclofocal.lab.data.config import data_config


def load(source: str, root: Path = Path("data"), seed: int = 0, **fields):
    """Load a data set by the flat fields of a recipe; paths may be ``Path``."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in fields.items()}
    return lab_data.load(data_config(source, **given), root, seed)


def picture(seed: int, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> Image.Image:
    """Noise that follows from ``seed``."""
    channels = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    return Image.fromarray(pixels, mode=mode) if mode == "CMYK" else Image.fromarray(pixels)


class _Python2Pickler(pickle._Pickler):
    """Pickler that writes ``str``, and the bytes of arrays, as Python 2 wrote byte strings."""

    dispatch = pickle._Pickler.dispatch.copy()

    def _save_string(self, text):
        content = text if isinstance(text, bytes) else text.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)  # type: ignore[attr-defined]
        self.memoize(text)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = _save_string


def python2_pickle(content: object) -> bytes:
    """Pickle an object as Python 2 and the numpy of 2009 did."""
    file = io.BytesIO()
    _Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar10(root: Path, batch_images: int = 20) -> Path:
    """``cifar-10-batches-py`` with six batches; labels run through the classes."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        content = {
            "batch_label": name.replace("_", " "),
            "labels": [(7 * i) % 10 for i in range(batch_images)],
            "data": rng.integers(0, 256, (batch_images, 3072), dtype=np.uint8),
            "filenames": [f"{name}_{i}.png" for i in range(batch_images)],
        }
        (folder / name).write_bytes(python2_pickle(content))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    meta = {"num_cases_per_batch": batch_images, "label_names": names, "num_vis": 3072}
    (folder / "batches.meta").write_bytes(python2_pickle(meta))
    return folder


def write_cifar100(root: Path, train_images: int = 300, test_images: int = 100) -> Path:
    """``cifar-100-python``; fine labels run through the classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name, count in (("train", train_images), ("test", test_images)):
        content = {
            "filenames": [f"{name}_{i}.png" for i in range(count)],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": [(7 * i) % 100 for i in range(count)],
            "coarse_labels": [(7 * i) % 20 for i in range(count)],
            "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
        }
        (folder / name).write_bytes(python2_pickle(content))
    meta = {
        "fine_label_names": [f"fine_{c}" for c in range(100)],
        "coarse_label_names": [f"coarse_{c}" for c in range(20)],
    }
    (folder / "meta").write_bytes(python2_pickle(meta))
    return folder


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of unsigned bytes: magic, big-endian shape, data."""
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion_mnist(root: Path, train_images: int = 40, test_images: int = 20, packed: bool = True) -> Path:
    """The four idx files, gzipped or plain; labels run through the classes."""
    folder = root / "fashion-mnist"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(2)
    for prefix, count in (("train", train_images), ("t10k", test_images)):
        arrays = {
            f"{prefix}-images-idx3-ubyte": rng.integers(0, 256, (count, 28, 28), dtype=np.uint8),
            f"{prefix}-labels-idx1-ubyte": (7 * np.arange(count) % 10).astype(np.uint8),
        }
        for name, array in arrays.items():
            content = idx_bytes(array)
            (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content, 1) if packed else content)
    return folder


def write_folder(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """An image folder with a number of different pictures per class, drawn with ``seed``."""
    for c, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            picture(seed + 1000 * c + i).save(folder / name / f"{i}.png")
    return folder


def write_classes(folder: Path, n_classes: int, names: list[str], side: int, mode: str = "RGB") -> Path:
    """Pictures of these names in each of ``n_classes`` folders, called 000, 001 and so on."""
    for c in range(n_classes):
        (folder / f"{c:03d}").mkdir(parents=True)
        for i, name in enumerate(names):
            picture(1000 * c + i, (side, side), mode).save(folder / f"{c:03d}" / name)
    return folder


def write_shard(path: Path, samples: dict[str, tuple[Image.Image, int]], extension: str = "png") -> Path:
    """A WebDataset shard: ``KEY.png``, ``KEY.cls`` and a ``KEY.json`` that need not be read, per sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key, (image, label) in samples.items():
            file = io.BytesIO()
            image.save(file, {"png": "PNG", "jpg": "JPEG"}[extension])
            for kind, content in ((extension, file.getvalue()), ("cls", str(label).encode()), ("json", b"{}")):
                member = tarfile.TarInfo(f"{key}.{kind}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_list(path: Path, lines: list[tuple[str, int]]) -> Path:
    """A list file: ``relative/path label`` per line."""
    path.write_text("".join(f"{name} {label}\n" for name, label in lines))
    return path


def write_coco(folder: Path, images: int = 6, side: int = 32, classes: int = 2) -> Path:
    """Write a COCO file of noise with one or two bright squares per image, and the images; category ids have gaps."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    content: dict = {"images": [], "annotations": [], "categories": []}
    for c in range(classes):
        content["categories"].append({"id": 10 * c + 3, "name": f"kind{c}"})
    for number in range(images):
        pixels = rng.integers(0, 60, (side, side + 8, 3), dtype=np.uint8)
        for _ in range(1 + number % 2):
            left, top = (int(place) for place in rng.integers(0, side // 2, 2))
            c = len(content["annotations"]) % classes
            pixels[top : top + side // 2, left : left + side // 2, c] = 250
            annotation = {"id": len(content["annotations"]), "image_id": 100 + number, "category_id": 10 * c + 3}
            content["annotations"].append(annotation | {"bbox": [left, top, side // 2, side // 2], "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        content["images"].append({"id": 100 + number, "file_name": f"{number}.png", "width": side + 8, "height": side})
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def write_voc(folder: Path, splits: dict[str, int], extra: str = "", body: str = "") -> Path:
    """Write a folder of Pascal VOC with one box per image; ``extra`` goes before the root of every XML file."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    number = 0
    for split, count in splits.items():
        stems = []
        for _ in range(count):
            stems.append(f"img{number}")
            picture(number, (40, 30)).save(folder / "JPEGImages" / f"img{number}.jpg")
            box = body or "<bndbox><xmin>4</xmin><ymin>5</ymin><xmax>20</xmax><ymax>25</ymax></bndbox>"
            kind = ("cat", "dog")[number % 2]
            (folder / "Annotations" / f"img{number}.xml").write_text(
                f"{extra}<annotation><filename>img{number}.jpg</filename><size><width>40</width><height>30</height>"
                f"<depth>3</depth></size><object><name>{kind}</name><difficult>{int(number == 2)}</difficult>{box}"
                "</object></annotation>"
            )
            number += 1
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
    return folder
