"""The catalogue of published weights, against what the authors' pages say."""

import subprocess
import sys

import pytest

from weights import (
    UnknownModelError,
    catalogue,
    find_handle,
    find_model,
    models,
    newest_handle,
)

HUB = "https://tfhub.dev/tensorflow/movinet"
BUCKET = "https://storage.googleapis.com/tf_model_garden/vision/movinet"
NAMES = ("a0", "a1", "a2", "a3", "a4", "a5")


def urls(**wanted):
    return {e.url for e in catalogue() if all(getattr(e, k) == v for k, v in wanted.items())}


def test_reading_the_catalogue_imports_neither_torch_nor_tensorflow():
    code = (
        "import sys, weights; weights.catalogue(); "
        "print(sorted({'torch', 'tensorflow', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(("mode", "versions"), [("base", (1, 2, 3)), ("stream", (2, 3))])
def test_every_hub_version_of_every_model_is_listed_once(mode, versions):
    listed = [e.url for e in catalogue() if e.container == "saved_model" and e.model.mode == mode]
    expected = [
        f"{HUB}/{name}/{mode}/kinetics-600/classification/{version}"
        for version in versions
        for name in NAMES
    ]
    assert sorted(listed) == sorted(expected)


def test_raw_checkpoints_are_listed_with_the_replaced_stream_ones():
    assert urls(container="checkpoint", legacy=False) == {
        f"{BUCKET}/movinet_{name}_{mode}.tar.gz" for name in NAMES for mode in ("base", "stream")
    }
    assert urls(container="checkpoint", legacy=True) == {
        f"{BUCKET}/movinet_{name}_stream_legacy.tar.gz" for name in NAMES
    }


@pytest.mark.parametrize(("precision", "versions"), [("float16", (1, 2)), ("int8", (1,))])
def test_quantised_tf_lite_files_exist_for_a0_to_a2_only(precision, versions):
    assert urls(container="tflite", precision=precision) == {
        f"https://tfhub.dev/tensorflow/lite-model/movinet/{name}/stream/kinetics-600/"
        f"classification/tflite/{precision}/{version}"
        for name in ("a0", "a1", "a2")
        for version in versions
    }


def test_int8_files_are_noted_as_another_network():
    noted = {e.precision for e in catalogue() if e.note}
    assert noted == {"int8"}
    assert all("squeeze-excitation" in e.note for e in catalogue() if e.precision == "int8")


def test_no_url_is_listed_twice():
    listed = [entry.url for entry in catalogue()]
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize(
    ("url", "era"),
    [
        (f"{HUB}/a0/base/kinetics-600/classification/1", 1),
        (f"{HUB}/a3/base/kinetics-600/classification/2", 1),
        (f"{HUB}/a0/base/kinetics-600/classification/3", 2),
        (f"{HUB}/a5/stream/kinetics-600/classification/2", 1),
        (f"{HUB}/a2/stream/kinetics-600/classification/3", 2),
        (f"{BUCKET}/movinet_a1_stream.tar.gz", 2),
        (f"{BUCKET}/movinet_a1_stream_legacy.tar.gz", 1),
        (f"{BUCKET}/movinet_a1_base.tar.gz", None),
    ],
)
def test_era_of_a_release(url, era):
    assert find_handle(url).era == era


def test_every_era_says_that_it_is_inferred_and_from_what():
    for entry in catalogue():
        assert entry.era_source.startswith("inferred: ") == (entry.era is not None), entry


# (top-1, top-5) on Kinetics-600, resolution and frames, from the tables of the authors' README.
RESULTS = {
    ("a0", "base"): (72.28, 90.92, 172, 50),
    ("a1", "base"): (76.69, 93.40, 172, 50),
    ("a2", "base"): (78.62, 94.17, 224, 50),
    ("a3", "base"): (81.79, 95.67, 256, 120),
    ("a4", "base"): (83.48, 96.16, 290, 80),
    ("a5", "base"): (84.27, 96.39, 320, 120),
    ("a0", "stream"): (72.05, 90.63, 172, 50),
    ("a1", "stream"): (76.45, 93.25, 172, 50),
    ("a2", "stream"): (78.40, 94.05, 224, 50),
    ("a3", "stream"): (80.09, 94.84, 256, 120),
    ("a4", "stream"): (81.49, 95.66, 290, 80),
    ("a5", "stream"): (82.37, 95.79, 320, 120),
}


# min_image_size of the validation data in the authors' configurations movinet_{name}_k600_8x8.yaml.
RESIZED = {"a0": 192, "a1": 192, "a2": 256, "a3": 288, "a4": 320, "a5": 368}


def test_frames_are_scaled_as_the_authors_configurations_say():
    assert {m.name: m.resize for m in models()} == RESIZED


def test_results_are_those_of_the_authors_tables():
    assert {(m.name, m.mode): (m.top1, m.top5, m.resolution, m.frames) for m in models()} == RESULTS


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [("a0", 12), ("a1", 18), ("a2", 20), ("a3", 29), ("a4", 44), ("a5", 72)],
)
def test_base_parameter_counts_explain_the_published_file_sizes(name, megabytes):
    # Four bytes each; the archive also holds the batch-norm statistics and is compressed.
    assert find_model(name, "base").parameters * 4 / 1e6 == pytest.approx(megabytes, rel=0.08)


@pytest.mark.parametrize("mode", ["base", "stream"])
@pytest.mark.parametrize("name", NAMES)
def test_newest_handle_is_version_3(name, mode):
    assert newest_handle(name, mode) == f"{HUB}/{name}/{mode}/kinetics-600/classification/3"


@pytest.mark.parametrize(
    "spelling",
    [
        f"{HUB}/a0/stream/kinetics-600/classification/2",
        f"{HUB}/a0/stream/kinetics-600/classification/2/",
        f"{HUB}/a0/stream/kinetics-600/classification/2?tf-hub-format=compressed",
        f"  {HUB}/a0/stream/kinetics-600/classification/2\n",
        f"{HUB}/a0/stream/kinetics-600/classification/2".replace("https", "http"),
    ],
)
def test_a_handle_is_found_however_it_is_spelt(spelling):
    entry = find_handle(spelling)
    assert (entry.model.name, entry.model.mode, entry.version) == ("a0", "stream", 2)


@pytest.mark.parametrize(
    ("url", "version"),
    [
        (f"{HUB}/a2/base/kinetics-600/classification", 3),
        (f"{HUB}/a2/base/kinetics-600/classification/", 3),
        (
            "https://tfhub.dev/tensorflow/lite-model/movinet/a2/stream/kinetics-600/"
            "classification/tflite/float16",
            2,
        ),
    ],
)
def test_a_handle_without_version_stands_for_the_newest(url, version):
    assert find_handle(url).version == version


@pytest.mark.parametrize(
    "url",
    [
        "",
        HUB,
        f"{HUB}/a0/stream/kinetics-600/classification/1",
        f"{HUB}/a0/stream/kinetics-600/classification/4",
        f"{HUB}/a6/base/kinetics-600/classification/3",
        "https://example.org/a0/stream/kinetics-600/classification/3",
        "weights/samples/movinet_mini_stream.tar.gz",
    ],
)
def test_what_was_not_published_is_not_found(url):
    assert find_handle(url) is None


@pytest.mark.parametrize(
    ("name", "mode", "expected"),
    [
        ("A3", "base", ["'A3'", "did you mean 'a3'?", "a0, a1, a2, a3, a4, a5"]),
        ("t0", "base", ["'t0'", "a0, a1, a2, a3, a4, a5"]),
        ("a0", "streams", ["'streams'", "did you mean 'stream'?", "base, stream"]),
    ],
)
def test_an_unknown_model_is_one_line_that_names_the_nearest(name, mode, expected):
    with pytest.raises(UnknownModelError) as error:
        newest_handle(name, mode)
    message = str(error.value)
    assert "\n" not in message
    assert [part for part in expected if part not in message] == []
