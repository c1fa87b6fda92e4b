"""Network and detector as one program, for any number of images."""

import torch

import ood_lib as ood

network = ood.load_network("torchvision:resnet50", weights="model.pt")
detector = ood.load("detector.safetensors")
module = ood.exportable(network, detector)

size = network.card.frame.size
images = torch.rand(3, 3, size, size)
anything = torch.export.Dim.DYNAMIC
program = torch.export.export(module, (images,), dynamic_shapes=({0: anything},))
torch.export.save(program, "scoring.pt2")

again = torch.export.load("scoring.pt2").module()
scores, logits = again(torch.rand(5, 3, size, size))
refused = scores > detector.threshold
