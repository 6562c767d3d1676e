import numpy as np
import pytest
import torch

from sparseq.run import data


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "x_train": random.integers(0, 256, (20, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(20) % 4,
        "x_test": random.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(6) % 4,
    }


def save(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def test_digits_are_the_real_ones_and_the_split_is_fixed():
    digits = data.load("digits")
    assert digits.x_train.shape == (1297, 1, 8, 8) and digits.x_test.shape == (500, 1, 8, 8)
    assert digits.classes == 10 and digits.channels == 1 and not digits.flip
    assert float(digits.x_train.max()) == 16
    assert torch.bincount(digits.y_test).min() >= 48
    assert torch.equal(digits.x_test, data.load("digits").x_test)


def test_no_test_image_is_trained_on():
    digits = data.load("digits")
    trained = {image.numpy().tobytes() for image in digits.x_train}
    assert not any(image.numpy().tobytes() in trained for image in digits.x_test)


def test_npz_keeps_images_and_labels(tmp_path, arrays):
    loaded = data.load(save(tmp_path / "mine.npz", arrays))
    assert loaded.name == "mine" and loaded.classes == 4 and loaded.flip and loaded.pad == 1
    assert loaded.x_train.dtype == torch.uint8
    assert np.array_equal(loaded.x_train.permute(0, 2, 3, 1).numpy(), arrays["x_train"])
    assert loaded.y_test.tolist() == arrays["y_test"].tolist()
    normal = loaded.normalise(loaded.x_train)
    assert normal.dtype == torch.float32
    torch.testing.assert_close(normal.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3), correction=0), torch.ones(3))


def test_grey_images_without_channel_floats_and_column_labels(tmp_path, arrays):
    for part in ("train", "test"):
        arrays[f"x_{part}"] = arrays[f"x_{part}"][..., 0].astype(np.float64) / 255
        arrays[f"y_{part}"] = arrays[f"y_{part}"].reshape(-1, 1)
    loaded = data.load(save(tmp_path / "grey.npz", arrays))
    assert loaded.x_train.shape == (20, 1, 8, 8) and loaded.x_train.dtype == torch.float32
    assert loaded.y_train.shape == (20,) and not loaded.flip


def test_training_batches_follow_the_generator_and_cover_the_images(tmp_path, arrays):
    arrays["x_train"] = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 8, 8))
    arrays["x_test"] = arrays["x_test"][..., 0]
    arrays["y_train"] = np.arange(20)
    loaded = data.load(save(tmp_path / "a.npz", arrays))

    def epoch(seed):
        return list(loaded.train_batches(6, torch.Generator().manual_seed(seed)))

    first, again, other = epoch(1), epoch(1), epoch(2)
    assert [len(labels) for _, labels in first] == [6, 6, 6] and loaded.steps(6) == 3
    for (images, labels), (same, also) in zip(first, again, strict=True):
        assert torch.equal(images, same) and torch.equal(labels, also)
    assert first[0][1].tolist() != other[0][1].tolist()
    seen = torch.cat([labels for _, labels in first])
    assert len(set(seen.tolist())) == 18
    # Every image still belongs to its label: its brightest pixel is the label's grey.
    for images, labels in first:
        raw = images * loaded.std + loaded.mean
        torch.testing.assert_close(raw.amax((1, 2, 3)), labels.float(), atol=1e-3, rtol=0)


def test_fewer_images_than_a_batch_make_one_batch(tmp_path, arrays):
    loaded = data.load(save(tmp_path / "a.npz", arrays))
    batches = list(loaded.train_batches(64, torch.Generator()))
    assert [len(labels) for _, labels in batches] == [20] and loaded.steps(64) == 1


def test_augmentation_is_a_shifted_crop_or_its_mirror(tmp_path, arrays):
    loaded = data.load(save(tmp_path / "a.npz", arrays))
    changed = loaded._augment(loaded.x_train, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(loaded.x_train, (1, 1, 1, 1))
    kinds = set()
    for image, around in zip(changed, padded, strict=True):
        crops = {
            (down, right, mirror): crop.flip(2) if mirror else crop
            for down in range(3)
            for right in range(3)
            for crop in [around[:, down : down + 8, right : right + 8]]
            for mirror in (False, True)
        }
        matching = [kind for kind, crop in crops.items() if torch.equal(crop, image)]
        assert len(matching) == 1
        kinds.add(matching[0])
    assert {mirror for *_, mirror in kinds} == {False, True} and len(kinds) > 8


def test_test_batches_come_in_order(tmp_path, arrays):
    loaded = data.load(save(tmp_path / "a.npz", arrays))
    batches = list(loaded.test_batches(4))
    assert [len(labels) for _, labels in batches] == [4, 2]
    assert torch.equal(torch.cat([x for x, _ in batches]), loaded.normalise(loaded.x_test))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz is not a file; expected .*x_train"):
        data.load(str(tmp_path / "none.npz"))


def test_unknown_source():
    with pytest.raises(ValueError, match=r"must be digits, cifar10, a folder .*got 'mnist'"):
        data.load("mnist")


def test_not_an_archive(tmp_path):
    path = tmp_path / "text.npz"
    path.write_text("hello")
    with pytest.raises(ValueError, match=r"text\.npz is not an \.npz file"):
        data.load(str(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"text\.npz is not an \.npz file"):
        data.load(str(path))
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match="single array"):
        data.load(str(path))


def test_every_truncation_is_a_clear_error(tmp_path, arrays):
    path = tmp_path / "cut.npz"
    np.savez_compressed(path, **arrays)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"cut\.npz is not an \.npz file"):
            data.load(str(path))


def test_damaged_bytes_are_a_clear_error(tmp_path, arrays):
    path = tmp_path / "bad.npz"
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz is not an \.npz file"):
        data.load(str(path))


def test_missing_array(tmp_path, arrays):
    del arrays["y_test"]
    with pytest.raises(ValueError, match=r"it lacks y_test; it has .*x_train"):
        data.load(save(tmp_path / "a.npz", arrays))


def test_pickled_objects_are_refused(tmp_path, arrays):
    arrays["x_train"] = np.array([{"a": 1}], dtype=object)
    with pytest.raises(ValueError, match=r"a\.npz is not .*[Oo]bject"):
        data.load(save(tmp_path / "a.npz", arrays))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("x_train", lambda a: a.astype(np.int32), r"x_train must be uint8 or floating .*int32"),
        ("x_train", lambda a: a[0, 0], r"x_train must have shape .*got \(8, 3\)"),
        ("x_train", lambda a: a[:0], r"x_train must have .*at least one image, got \(0, 8, 8, 3\)"),
        ("x_test", lambda a: a.transpose(0, 3, 1, 2), r"x_test must have .*got \(6, 3, 8, 8\)"),
        ("x_test", lambda a: a[:, :4], r"x_test must hold the same kind.*got .*\(3, 4, 8\)"),
        ("x_test", lambda a: a / 255, r"x_test must hold the same kind.*got torch\.float32"),
        ("x_train", lambda a: np.where(a > 250, np.nan, a), r"x_train must be finite"),
        ("y_train", lambda a: a.astype(float), r"y_train must be integers, got float64"),
        ("y_train", lambda a: a[:-1], r"y_train must have shape \(20,\).*got \(19,\)"),
        ("y_test", lambda a: a - 1, r"y_test must be >= 0, got -1"),
        ("y_test", lambda a: a + 4, r"all that y_test names, got classes up to 3 and 7"),
        ("y_train", lambda a: 0 * a, r"at least two classes"),
    ],
)
def test_wrong_arrays_are_named(tmp_path, arrays, name, change, message):
    arrays[name] = change(arrays[name])
    with pytest.raises(ValueError, match=rf"a\.npz: .*{message}"):
        data.load(save(tmp_path / "a.npz", arrays))


def test_cifar10_failing_download_names_folder(tmp_path, monkeypatch):
    import torchvision

    def offline(*args, **kwargs):
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", offline)
    with pytest.raises(OSError, match=r"CIFAR-10 could not be downloaded to .*corrupted"):
        data.load("cifar10", root=tmp_path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of pictures, one of them all red; of several sizes and kinds of file."""
    image = pytest.importorskip("PIL.Image")
    sizes = [(16, 16), (24, 16), (16, 40), (64, 64)]
    for part, count in (("train", 4), ("test", 2)):
        for label, colour in (("blue", (0, 0, 200)), ("red", (200, 0, 0))):
            (tmp_path / part / label).mkdir(parents=True)
            for number, size in enumerate(sizes[:count]):
                ending = "jpg" if number % 2 else "png"
                path = tmp_path / part / label / f"{number}.{ending}"
                image.new("RGB", size, colour).save(path)
    return tmp_path


def test_a_folder_of_images(folder):
    loaded = data.load(str(folder), image_size=16)
    assert loaded.name == folder.name and loaded.classes == 2 and loaded.flip
    assert loaded.x_train.shape == (8, 3, 16, 16) and loaded.x_train.dtype == torch.uint8
    assert loaded.y_train.tolist() == [0] * 4 + [1] * 4 and loaded.y_test.tolist() == [0, 0, 1, 1]
    red = loaded.x_train[loaded.y_train == 1].float()
    assert (red[:, 0] - 200).abs().max() <= 3 and red[:, 1:].max() <= 3  # JPEG is near
    (folder / "test").rename(folder / "val")
    assert torch.equal(data.load(str(folder), image_size=16).x_test, loaded.x_test)


def test_images_are_cut_to_their_middle(folder):
    from PIL import Image

    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    Image.fromarray(wide).save(folder / "train" / "red" / "0.png")
    loaded = data.load(str(folder), image_size=8)
    assert loaded.x_train[4].min() == 255


def test_a_folder_that_lacks_something(folder):
    (folder / "test" / "red").rename(folder / "test" / "green")
    with pytest.raises(ValueError, match=r"test must hold the classes of .*train: blue, red; got"):
        data.load(str(folder))
    (folder / "test" / "green").rename(folder / "elsewhere")
    (folder / "test").rename(folder / "tests")
    with pytest.raises(
        ValueError, match=r"must hold train/CLASS/\*\.png .*; there is no folder val"
    ):
        data.load(str(folder))
    (folder / "tests").rename(folder / "test")
    for path in (folder / "test" / "blue").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"test must hold CLASS/\*\.png: .*blue"):
        data.load(str(folder))


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_image_is_named(folder, content):
    path = folder / "train" / "blue" / "3.jpg"
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(ValueError, match=r"data: .*train/blue/3\.jpg must be an image: "):
        data.load(str(folder))
