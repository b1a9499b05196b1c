"""Whole scenes: equal to the untiled model, no seams, resumable after a kill, valid COGs, flat memory."""
import os, resource, signal, sys, time

import numpy as np
import pytest, rasterio, torch
from affine import Affine
from torch import nn

from eo_brew.encoders import create_encoder
from eo_brew.rasters import open_scene, read_window, sample_scene
from eo_brew.scenes import predict_raster
from eo_brew.sensors import get_sensor
from eo_brew.sweep import ProbeMap, Sweep

pytestmark = pytest.mark.slow

S4 = get_sensor('sentinel2_l1c', bands='B02 B03 B04 B08'.split())

def small_encoder():
    torch.manual_seed(0)
    return create_encoder('vit_tiny_patch16_224', {'ms': S4}, img_size=64, patch_size=8, embed_dim=24, depth=1, num_heads=2).eval()

def conv_model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 3, padding=1)).eval()
    class Dense(nn.Module):
        def __init__(self): super().__init__(); self.net = net
        def forward(self, batch): return self.net((batch['ms'] - 1200)/500)
    return Dense()

def scene_file(path, h, w, hole=False, blocksize=256):
    "Four bands of random DN, written by tiles"
    rng = np.random.default_rng(0)
    tile = rng.integers(300, 3000, (4, blocksize, blocksize)).astype('uint16')
    with rasterio.open(path, 'w', driver='GTiff', dtype='uint16', count=4, height=h, width=w, crs='EPSG:32633', transform=Affine(10, 0, 3e5, 0, -10, 5e6), nodata=0,
                       tiled=True, blockxsize=blocksize, blockysize=blocksize, compress='lzw') as dst:
        for _, win in dst.block_windows(1):
            t = tile[:, :win.height, :win.width].copy()
            if hole and win.row_off < h//2 and win.col_off < w//2: t[:] = 0
            dst.write(t, window=win)
        for i, n in enumerate(S4.band_names, 1): dst.set_band_description(i, n)
        dst.update_tags(EO_OFFSET='0')
    return path

def opened(path): return open_scene(path, 'sentinel2_l1c', S4.band_names)


def test_map_of_the_sample_scene_equals_the_untiled_model(tmp_path):
    scene, model = open_scene(sample_scene(), 'sentinel2_l1c', S4.band_names), conv_model()
    with torch.no_grad(): whole = model({'ms': torch.from_numpy(read_window(scene)[0])[None]})[0]
    f = predict_raster(model, scene, tmp_path/'v.tif', kind='values', size=128, overlap=32, margin=2, block=400, progress=False)
    with rasterio.open(f) as src: got = src.read()
    assert np.abs(got - whole.numpy()).max() < 1e-5
    f = predict_raster(model, scene, tmp_path/'c.tif', size=128, overlap=32, margin=2, block=400, progress=False)
    with rasterio.open(f) as src: assert (src.read(1) == whole.argmax(0).numpy()).mean() > .9999
    f = predict_raster(model, scene, tmp_path/'n.tif', kind='values', size=128, overlap=0, block=400, progress=False)
    with rasterio.open(f) as src: assert np.abs(src.read() - whole.numpy()).max() > .01           # windows without overlap are seen

def test_nodata_is_kept_and_the_cog_is_valid(tmp_path):
    cogeo = pytest.importorskip('rio_cogeo', reason='pip install rio-cogeo')
    scene = opened(scene_file(tmp_path/'s.tif', 700, 900, hole=True))
    for kind, dtype, pca in ('classes', None, None), ('embeddings', 'int8', 3), ('embeddings', 'float32', None):
        model = conv_model() if kind == 'classes' else small_encoder()
        f = predict_raster(model, scene, tmp_path/f'{kind}{dtype}.tif', names=('water', 'wood', 'field') if kind == 'classes' else (), colors=('#0000ff', '#00ff00', '#ffff00') if kind == 'classes' else (),
                           size=64, pca=pca, dtype=dtype, progress=False)
        ok, errors, warnings = cogeo.cog_validate(f, strict=True)
        assert ok and not errors and not warnings
        with rasterio.open(f) as src:
            mask = src.dataset_mask() > 0
            c = src.shape[0]/700
            assert not mask[:int(256*c)-1, :int(256*c)-1].any() and mask[int(600*c):, int(700*c):].all()
            assert src.is_tiled and src.compression.name == 'deflate'
            if kind == 'classes':
                assert [src.colormap(1)[i][:3] for i in range(3)] == [(0, 0, 255), (0, 255, 0), (255, 255, 0)] and src.tags(1)['class_1'] == 'wood'

def test_killed_at_any_moment_the_map_is_the_same(tmp_path):
    path, model = scene_file(tmp_path/'s.tif', 768, 768), small_encoder()
    kw = dict(size=64, block=200, pca=3, dtype='int8', progress=False)
    want = rasterio.open(predict_raster(model, opened(path), tmp_path/'want.tif', **kw)).read()
    gen, kills, out = torch.Generator().manual_seed(0), 0, tmp_path/'got.tif'
    t0 = time.time(); predict_raster(model, opened(path), tmp_path/'t.tif', **kw); took = time.time() - t0
    left = []
    for _ in range(10):
        pid = os.fork()
        if pid == 0:
            try: predict_raster(model, opened(path), out, overwrite=True, **kw)
            finally: os._exit(0)
        time.sleep(torch.rand(1, generator=gen).item()*took*.3)
        os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)
        kills += 1
        left.append(len(list((tmp_path/'.got.tif.parts').glob('*.npy'))) if (tmp_path/'.got.tif.parts').exists() else -1)
        if out.exists(): assert np.array_equal(rasterio.open(out).read(), want); out.unlink()      # whole or not there
    f = predict_raster(model, opened(path), out, overwrite=True, **kw)
    assert np.array_equal(rasterio.open(f).read(), want) and kills == 10 and max(left) > 0, left
    assert not [p for p in tmp_path.iterdir() if p.name.endswith('.parts')]

def test_a_full_disk_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    import eo_brew.scenes as scenes
    path, n = scene_file(tmp_path/'s.tif', 300, 300), []
    def full(f, a):
        n.append(1)
        if len(n) == 2: raise OSError(28, 'No space left on device')
        return save(f, a)
    save = np.save
    monkeypatch.setattr(scenes.np, 'save', full)
    with pytest.raises(ValueError, match='finished blocks are kept'): predict_raster(conv_model(), opened(path), tmp_path/'o.tif', size=64, block=100, progress=False)
    assert not (tmp_path/'o.tif').exists() and len(list((tmp_path/'.o.tif.parts').glob('*.npy'))) == 1
    monkeypatch.undo()
    predict_raster(conv_model(), opened(path), tmp_path/'o.tif', size=64, block=100, progress=False)

def test_other_weights_do_not_continue_a_job(tmp_path, monkeypatch):
    import eo_brew.scenes as scenes
    path, model = scene_file(tmp_path/'s.tif', 300, 300), conv_model()
    monkeypatch.setattr(scenes, 'write_cog', lambda *a: (_ for _ in ()).throw(ValueError('stop')))
    with pytest.raises(ValueError, match='stop'): predict_raster(model, opened(path), tmp_path/'o.tif', kind='values', size=64, progress=False)
    monkeypatch.undo()
    with torch.no_grad(): model.net[2].bias += 5
    f = predict_raster(model, opened(path), tmp_path/'o.tif', kind='values', size=64, progress=False)
    g = predict_raster(model, opened(path), tmp_path/'p.tif', kind='values', size=64, progress=False)
    assert np.array_equal(rasterio.open(f).read(), rasterio.open(g).read())

def test_memory_is_flat_against_height(tmp_path):
    "Peak of a process that maps a scene, beyond what it starts with"
    def peak(h):
        path = scene_file(tmp_path/f'{h}.tif', h, 1024)
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            try:
                start = current()
                top = [0]
                def look(b): top[0] = max(top[0], current()); return b['ms'][:, :2, ::8, ::8]
                predict_raster(look, opened(path), tmp_path/f'o{h}.tif', kind='embeddings', size=128, block=1024, bs=4, progress=False)
                os.write(w, str(max(top[0], current()) - start).encode())
            finally: os._exit(0)
        os.waitpid(pid, 0)
        return int(os.read(r, 99) or -1)
    def current(): return int(open('/proc/self/statm').read().split()[1])*resource.getpagesize()
    if not sys.platform.startswith('linux'): pytest.skip('reads /proc')
    small, large = peak(1024), peak(6144)
    assert 0 < large < small + 40e6, (small, large)

def test_probe_and_two_dates(tmp_path):
    scene, enc = opened(scene_file(tmp_path/'s.tif', 256, 320)), small_encoder()
    f = predict_raster(ProbeMap(enc, lambda z: (z[:, 0] > 0).astype(int), 2), scene, tmp_path/'p.tif', names=('no', 'yes'), size=64, progress=False)
    with rasterio.open(f) as src: assert src.shape == (32, 40) and set(np.unique(src.read())) <= {0, 1}
    f = predict_raster(lambda b: (b['before'] - b['after'])[:, :1], {'before': scene, 'after': scene}, tmp_path/'d.tif', size=64, progress=False)
    with rasterio.open(f) as src: assert not src.read().any() and src.count == 1
    other = opened(scene_file(tmp_path/'t.tif', 256, 256))
    with pytest.raises(ValueError, match='different grids'): predict_raster(lambda b: b['a'], {'a': scene, 'b': other}, tmp_path/'x.tif', size=64)

def test_a_scene_in_reflectance_is_refused(tmp_path):
    p = tmp_path/'r.tif'
    with rasterio.open(p, 'w', driver='GTiff', dtype='float32', count=4, height=128, width=128, crs='EPSG:32633', transform=Affine(10, 0, 3e5, 0, -10, 5e6)) as dst:
        dst.write(np.random.default_rng(0).random((4, 128, 128), dtype='f4')*.4)
        for i, n in enumerate(S4.band_names, 1): dst.set_band_description(i, n)
    with pytest.raises(ValueError, match='gain='): predict_raster(small_encoder(), open_scene(p, 'sentinel2_l1c', S4.band_names, offset=0), tmp_path/'o.tif', size=64)

@pytest.mark.slow
def test_a_dask_worker_may_die(tmp_path):
    distributed = pytest.importorskip('dask.distributed', reason='pip install eo_brew[dask]')
    path, model = scene_file(tmp_path/'s.tif', 768, 768), small_encoder()
    kw = dict(size=64, block=100, pca=3, dtype='int8', progress=False)
    want = rasterio.open(predict_raster(model, opened(path), tmp_path/'want.tif', **kw)).read()
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, distributed.Client(cluster) as client:
        victim = [w['pid'] if isinstance(w, dict) else w for w in client.run(os.getpid).values()][0]
        import threading
        def kill():
            while len(list((tmp_path/'.got.tif.parts').glob('*.npy'))) < 5: time.sleep(.05)
            os.kill(victim, signal.SIGKILL)
        t = threading.Thread(target=kill); t.start()
        f = predict_raster(model, opened(path), tmp_path/'got.tif', client=client, **kw)
        t.join()
        assert victim not in client.run(os.getpid).values()
    assert np.array_equal(rasterio.open(f).read(), want)
