"""A detector of learning-loop-node 0.27.0 that finds the same in every picture. `detector_new.py PORT`"""

import sys
from pathlib import Path

import uvicorn
from learning_loop_node import DetectorNode
from learning_loop_node.data_classes import BoxDetection, ImageMetadata, ImagesMetadata, PointDetection


class Logic:
    def __init__(self, version):
        self.version = version

    def evaluate(self, image):
        box = BoxDetection(category_name="white box", x=1, y=2, width=30, height=40, model_name=self.version, confidence=0.5)
        point = PointDetection(category_name="purple point", x=3.5, y=4.5, model_name=self.version, confidence=0.9)
        return ImageMetadata(box_detections=[box], point_detections=[point])

    def batch_evaluate(self, images):
        return ImagesMetadata(items=[self.evaluate(image) for image in images])


class Factory:
    model_format = "mocked"

    async def build(self, model_info):
        assert Path(model_info.model_root_path, "file_1.txt").read_text() == "content of file one"
        return Logic(model_info.version)


uvicorn.run(DetectorNode(name="new detector", detector_factory=Factory()), host="127.0.0.1", port=int(sys.argv[1]))
