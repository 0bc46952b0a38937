"""A trainer of learning-loop-node 0.27.0 whose training is to sleep. `trainer.py PORT SECONDS`"""

import os
import sys
from pathlib import Path

import uvicorn
from learning_loop_node import TrainerNode
from learning_loop_node.data_classes import BoxDetection, Detections, PretrainedModel, TrainingStateData
from learning_loop_node.trainer.trainer_logic import TrainerLogic

port, seconds = sys.argv[1:]


class Logic(TrainerLogic):
    model_architecture = "sleeper"
    training_progress = 0.5
    provided_pretrained_models = [PretrainedModel(name="small", label="Small", description="a small one")]
    epoch = 0

    def _can_resume(self):
        return True

    async def _resume(self):
        await self._start_training_from_scratch()

    async def _start_training_from_base_model(self):
        await self._start_training_from_scratch()

    async def _start_training_from_scratch(self):
        await self.executor.start(f"sleep {seconds}")

    def _get_new_best_training_state(self):
        self.epoch += 1
        confusion = {category.id: {"tp": self.epoch, "fp": 1, "fn": 2} for category in self.training.categories}
        return TrainingStateData(confusion_matrix=confusion, epoch=self.epoch)

    def _on_metrics_published(self, training_state_data):
        Path(self.training.training_folder, "model.pt").write_text(f"weights of epoch {training_state_data.epoch}")

    async def _get_latest_model_files(self):
        weights = Path(self.training.training_folder, "model.pt")
        weights.touch()
        return {"mocked": [str(weights)], "mocked_2": [str(weights)]}

    async def _detect(self, model_information, images, model_folder):
        assert Path(model_folder, "model.pt").exists()
        found = []
        for image in images:
            box = BoxDetection(
                category_name="white box", x=1, y=2, width=3, height=4, model_name=model_information.version,
                confidence=0.5, category_id=model_information.categories[0].id,
            )
            found.append(Detections(box_detections=[box], image_id=os.path.splitext(os.path.basename(image))[0]))
        return found

    async def _clear_training_data(self, training_folder):
        return None


uvicorn.run(TrainerNode(name="new trainer", trainer_logic=Logic("mocked")), host="127.0.0.1", port=int(port))
