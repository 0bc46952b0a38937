"""An annotator of learning-loop-node 0.27.0 that outlines a box. `annotator.py PORT`"""

import sys
from uuid import uuid4

import uvicorn
from learning_loop_node.annotation.annotator_logic import AnnotatorLogic
from learning_loop_node.annotation.annotator_node import AnnotatorNode
from learning_loop_node.data_classes import Point, SegmentationAnnotation, Shape, ToolOutput


class Logic(AnnotatorLogic):
    def init(self, node):
        return None

    def create_empty_history(self):
        return {}

    async def handle_user_input(self, user_input, history):
        data = user_input.data
        if data.event_type == "left_mouse_down":
            history["start"] = data.coordinate
            return ToolOutput(svg=f'<circle cx="{data.coordinate.x}" cy="{data.coordinate.y}" r="2"/>')
        start, end = history["start"], data.coordinate
        shape = Shape(points=[Point(x=start.x, y=start.y), Point(x=end.x, y=start.y), Point(x=end.x, y=end.y)])
        outline = SegmentationAnnotation(id=str(uuid4()), shape=shape, image_id=data.image_uuid, category_id=data.category.id)
        return ToolOutput(svg="<polygon/>", annotation=outline)

    def logout_user(self, sid):
        return True


uvicorn.run(AnnotatorNode(name="new annotator", annotator_logic=Logic()), host="127.0.0.1", port=int(sys.argv[1]))
