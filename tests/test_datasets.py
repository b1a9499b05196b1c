"""The adapters on torchgeo's and GEO-Bench's own classes, reading generated files of the published layout."""
import sys, warnings
import numpy as np, pytest, torch

from eo_brew.datasets import GeoBenchData, TorchGeoData, band_key, dataset_loaders, match_bands
from eo_brew.sensors import get_sensor

S2 = get_sensor('sentinel2_l1c')
def sub(*names): return S2.select(list(names))


@pytest.mark.parametrize('a,b', [('B4','B04'), ('b04','B04'), ('04 - Red','B04'), ('08A - Vegetation Red Edge','B8A'), ('B8a','B8A'), ('Near_IR','near ir')])
def test_one_band_many_spellings(a, b): assert band_key(a) == band_key(b)

def test_8_and_8a_are_not_mixed_up():
    assert band_key('B08') != band_key('B8A') and match_bands(['B8A','B08'], sub('B08')) == [1]

def test_missing_bands_are_named():
    with pytest.raises(ValueError, match=r"\['B11'\] of sentinel2_l1c are not in the data set"): match_bands(['B02','B03'], sub('B02','B11'))


def write_tif(path, x):
    import rasterio
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(path, 'w', driver='GTiff', count=len(x), height=x.shape[1], width=x.shape[2], dtype='uint16') as f: f.write(x.astype('uint16'))

def test_eurosat(tmp_path):
    datasets = pytest.importorskip('torchgeo.datasets')
    cls = datasets.EuroSAT
    for k,c in enumerate(('AnnualCrop','Forest')):
        for i in range(2): write_tif(tmp_path/cls.base_dir/c/f'{c}_{i}.tif', np.broadcast_to(np.arange(13)[:,None,None]*100+k, (13,64,64)))
    for s in cls.splits: (tmp_path/f'eurosat-{s}.txt').write_text('\n'.join(f'{c}_{i}.jpg' for c in ('AnnualCrop','Forest') for i in range(2)))
    ds = TorchGeoData(cls(str(tmp_path), split='train'), sub('B8A','B02'))
    d,y = ds[3]
    assert d['ms'].shape == (2,64,64) and d['ms'][:,0,0].tolist() == [1201., 101.] and y == 1      # B8A comes last in EuroSAT
    dls = dataset_loaders(ds, ds, bs=2, classes=['crop','forest'], device='cpu'); x,y = dls.one_batch()
    assert x['ms'].shape == (2,2,64,64) and list(dls.sensors['ms'].band_names) == ['B8A','B02']

def test_levir_cd_is_a_pair_of_dates(tmp_path):
    datasets = pytest.importorskip('torchgeo.datasets'); from PIL import Image
    for k,folder in enumerate(('A','B','label')):
        (tmp_path/folder).mkdir()
        a = np.zeros((32,32,3), 'uint8')+k*50; a[:4,:4] = 255
        Image.fromarray(a if folder != 'label' else a[...,0]*(a[...,0] == 255)).save(tmp_path/folder/'train_1.png')
    ds = TorchGeoData(datasets.LEVIRCD(str(tmp_path), split='train'), 'rgb', bands=['red','green','blue'], scale=1/255)
    d,y = ds[0]
    assert set(d) == {'before','after'} and d['before'].shape == (3,32,32) and y.shape == (32,32) and y.sum() == 16
    assert d['after'][0,20,20].item() == pytest.approx(50/255) and d['after'].max() == 1

def test_oscd_by_band_name(tmp_path):
    datasets = pytest.importorskip('torchgeo.datasets'); from PIL import Image
    base,city = tmp_path/'Onera Satellite Change Detection dataset - Images', 'abudhabi'
    for date in (1,2):
        for i,b in enumerate(datasets.OSCD.all_bands): write_tif(base/city/f'imgs_{date}_rect'/f'{b}.tif', np.full((1,16,16), i*10+date))
    (base/city/'dates.txt').write_text('date_1: 20160101\ndate_2: 20180101\n')
    cm = tmp_path/'Onera Satellite Change Detection dataset - Train Labels'/city/'cm'; cm.mkdir(parents=True)
    m = np.zeros((16,16), 'uint8'); m[:2] = 255; Image.fromarray(m).save(cm/'cm.png')
    ds = TorchGeoData(datasets.OSCD(str(tmp_path), split='train'), sub('B04','B8A'))
    d,y = ds[0]; at = [list(datasets.OSCD.all_bands).index(b)*10 for b in ('B04','B8A')]
    assert d['before'][:,0,0].tolist() == [a+1 for a in at] and d['after'][:,0,0].tolist() == [a+2 for a in at] and y.sum() == 32

def test_geobench_samples(tmp_path, monkeypatch):
    monkeypatch.setenv('GEO_BENCH_DIR', str(tmp_path))
    dataset = pytest.importorskip('geobench.dataset')
    info = [dataset.Sentinel2(n, (a,), 10) for n,a in (('02 - Blue','blue'), ('03 - Green','green'), ('04 - Red','red'), ('08A - Vegetation Red Edge','nir'))]
    bands = [dataset.Band(np.full((8,8), 10*i), b, 10) for i,b in enumerate(info)]
    mask = dataset.Band(np.eye(8, dtype=int)-1, dataset.SegmentationClasses('label', 10, n_classes=2), 10)
    sets = {k: GeoBenchData([dataset.Sample(list(bands), label, 'x')]*2, sub('B04','B8A'), mask_map={-1: 255}) for k,label in (('mask', mask), ('class', 3), ('multi', np.array([0,1])))}
    d,y = sets['mask'][0]; assert d['ms'][:,0,0].tolist() == [20., 30.] and y.unique().tolist() == [0,255]
    assert sets['class'][0][1] == 3 and sets['multi'][1][1].tolist() == [0., 1.]
