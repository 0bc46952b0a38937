"""loopcore as an operator runs it, on the kit's model. env: PORT, DATA_FOLDER, BENCH_ASSETS, BENCH_MODEL.

One node, all defaults: the backend `onnx`, the selector `uncertain`, the Learning Loop's plugin. With BENCH_MODEL=null a
backend that finds one box and touches no pixel, as `common.Detector` does.
"""
import json
import os
import shutil
import sys
from pathlib import Path

from loopcore.package import write_package
from loopcore.types import ModelInfo

ASSETS, DATA = Path(os.environ['BENCH_ASSETS']), Path(os.environ['DATA_FOLDER'])
IS_NULL = os.environ.get('BENCH_MODEL') == 'null'
LABELS = tuple(f'c{index}' for index in range(80))
TOML = """
[node]
data_dir = "data"

[server]
port = {port}

[backend]
driver = "{driver}"
model = "./model"

[[platforms]]
driver = "learningloop"
url = "http://127.0.0.1:9"
organization = "o"
project = "p"
muted = true

[[selectors]]
driver = "uncertain"

[[sinks]]
driver = "folder"
path = "kept"

[plugins]
files = {files}
"""
NULL = """
from loopcore import hookimpl
from loopcore.testing.drivers import FixedBackend
class Null(FixedBackend):
    name = "null"
@hookimpl
def loopcore_drivers():
    return [Null]
"""


def make_model(folder: Path) -> None:
    meta = json.loads((ASSETS / 'model.json').read_text())
    folder.mkdir()
    shutil.copy(ASSETS / 'model.onnx', folder)
    spec = {'confidence': meta['conf'], 'iou': 0.5}
    if meta.get('format') == 'yolox':
        spec |= {'decoder': 'yolox'}
    else:
        spec |= {'decoder': 'yolo', 'scale': 1 / 255, 'resize': 'letterbox', 'placement': 'center', 'pad': 114}
    info = ModelInfo(name='bench', version='1.0', format='null' if IS_NULL else 'onnx', labels=LABELS, spec=spec)
    write_package(folder, info)


if __name__ == '__main__':
    DATA.mkdir(exist_ok=True)
    make_model(DATA / 'model')
    (DATA / 'null.py').write_text(NULL)
    files = json.dumps(['null.py'] if IS_NULL else [])
    driver = 'null' if IS_NULL else 'onnx'
    (DATA / 'loop.toml').write_text(TOML.format(port=os.environ['PORT'], driver=driver, files=files))
    os.chdir(DATA)
    os.execv(sys.executable, [sys.executable, '-m', 'loopcore', 'run', 'loop.toml'])
