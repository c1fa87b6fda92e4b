"""The detector of the page "In production", from a folder of pictures to a file."""

import ood_lib as ood

network = ood.load_network("torchvision:resnet50", weights="model.pt")
frame = network.card.frame
bench = ood.load_benchmark("folder:pictures", image_size=frame.size, resize=frame.resize or None)
train, val = (ood.extract(network, data) for data in (bench.train, bench.val))

detector = ood.KNN(k=10).fit(train).calibrate(val, tpr=0.95)
detector.save("detector.safetensors", network=network, frame=bench.val.frame, classes=bench.classes)
