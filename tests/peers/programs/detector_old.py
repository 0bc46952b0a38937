"""A detector of learning-loop-node 0.11.1 that finds the same in every picture. `detector_old.py PORT`"""

import os
import sys

import uvicorn
from learning_loop_node import DetectorNode, DetectorLogic
from learning_loop_node.data_classes import BoxDetection, ImageMetadata
from learning_loop_node.globals import GLOBALS

GLOBALS.data_folder = os.environ["DATA_FOLDER"]  # this release has no other setting for it


class Logic(DetectorLogic):
    def __init__(self):
        super().__init__("mocked")

    def init(self):
        self.version = self.model_info.version

    def evaluate(self, image):
        box = BoxDetection(category_name="white box", x=1, y=2, width=30, height=40, model_name=self.version, confidence=0.5)
        return ImageMetadata(box_detections=[box])


uvicorn.run(DetectorNode(name="old detector", detector=Logic()), host="127.0.0.1", port=int(sys.argv[1]))
