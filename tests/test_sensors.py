"""Sensors: the published numbers, JSON and TOML round trips, normalisation that never sees the crop's own maximum."""

import json

import pytest
import torch

from eo_brew.core.normalize import SensorNormalize
from eo_brew.core.sensors import (
    Sensor,
    get_sensor,
    list_sensors,
    load_sensor,
    register_sensor,
    rgb_from,
)

# Sentinel-2 L1C over fMoW-Sentinel, DN
NAMES = "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split()
MEAN = [
    1370.19,
    1184.38,
    1120.77,
    1136.26,
    1263.74,
    1645.40,
    1846.87,
    1762.60,
    1972.62,
    582.73,
    14.77,
    1732.16,
    1247.92,
]
STD = [
    633.15,
    650.28,
    712.13,
    965.23,
    948.98,
    1108.07,
    1258.36,
    1233.15,
    1364.39,
    472.38,
    14.31,
    1310.37,
    1087.60,
]
GSD = [60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 60, 20, 20]


def test_sentinel2_numbers():
    s = get_sensor("sentinel2_l1c")
    assert s.band_names == NAMES and [b.gsd for b in s.bands] == GSD
    torch.testing.assert_close(s.mean, torch.tensor(MEAN))
    torch.testing.assert_close(s.std, torch.tensor(STD))
    assert s.rgb == ("B04", "B03", "B02") and s.rgb_max == 0.3558 and s.scale == 1e-4
    assert "B10" not in get_sensor("sentinel2_l2a").band_names


@pytest.mark.parametrize("name", list_sensors())
def test_round_trip_and_order(name):
    s = get_sensor(name)
    assert Sensor.from_dict(json.loads(json.dumps(s.to_dict()))) == s
    assert s.select(s.band_names[::-1]).band_names == s.band_names[::-1]
    w = [b.wavelength for b in s.bands if b.wavelength]
    assert all(400 < v < 2500 or name.endswith("_st") and 10_000 < v < 12_000 for v in w)


@pytest.mark.parametrize(
    "name,dn,reflectance",
    [("landsat8_sr", 18181.8, 0.3), ("landsat5_sr", 7272.727, 0), ("landsat9_toa", 10000, 0.1)],
)
def test_landsat_collection_2(name, dn, reflectance):
    s = get_sensor(name)
    assert abs((dn + s.offset) * s.scale - reflectance) < 1e-4


def test_darker_input_gives_darker_rgb():
    "The released code divides RGB by the maximum of the crop: a ten times darker image gives the same input."
    s = get_sensor("sentinel2_l1c")
    x = torch.rand(13, 8, 8, generator=torch.Generator().manual_seed(0)) * 3000
    torch.testing.assert_close(rgb_from(x / 10, s), rgb_from(x, s) / 10)


def test_normalize_uses_only_the_sensor():
    s = get_sensor("sentinel2_l1c")
    n = SensorNormalize(s)
    x = torch.rand(2, 13, 4, 4) * 3000
    torch.testing.assert_close(n(x[:1]), n(x)[:1])
    torch.testing.assert_close(n.decode(n(x)), x, rtol=1e-4, atol=0.01)


def test_toml(tmp_path):
    f = tmp_path / "drone.toml"
    f.write_text('name = "drone"\ngsd_note = 1\nbands = [{name="r"}]')
    with pytest.raises(ValueError, match="gsd_note"):
        load_sensor(f)
    f.write_text(
        'name = "drone"\nscale = 0.5\nbands = [{name="r", wavelength=660, gsd=0.05, mean=90, std=40, common="red"}]'
    )
    s = get_sensor(f)
    assert (s.scale, s.bands[0].std, s.select(["red"]).band_names) == (0.5, 40, ["r"])
    assert get_sensor(str(f)) == s
    with pytest.raises(ValueError, match="is taken"):
        register_sensor(get_sensor("rgb"))
