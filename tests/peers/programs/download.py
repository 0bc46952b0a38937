"""The reference in `benchmarks.download`, run by its own interpreter: port, number of pictures, folder.

As a training does it: what is known of the pictures, then the pictures.
"""

import asyncio
import json
import logging
import os
import resource
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path


async def download(count: int, folder: str) -> dict[str, float]:
    communicator = import_module("learning_loop_node.loop_communication").LoopCommunicator()
    context = import_module("learning_loop_node.data_classes").Context(organization="o", project="p")
    exchanger = import_module("learning_loop_node.data_exchanger").DataExchanger(context, communicator)
    ids = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(count)]
    began = time.perf_counter()
    used = cpu()
    await exchanger.download_images_data(ids)
    await exchanger.download_images(ids, folder)
    files = len(list(Path(folder).glob("*.jpg")))
    return {"s": time.perf_counter() - began, "cpu": cpu() - used, "files": files}


def cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    logging.disable()
    port, count, base = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="download", dir=base) as folder:
        account = {"LOOP_USERNAME": "u", "LOOP_PASSWORD": "p", "DATA_FOLDER": f"{folder}/data"}
        os.environ |= {"LOOP_HOST": f"127.0.0.1:{port}", "LOOP_ORGANIZATION": "o", "LOOP_PROJECT": "p", **account}
        print(json.dumps(asyncio.run(download(int(count), folder))))
