import numpy as np
import torch
from PIL import Image

from faststy.nn.generator import Generator, GeneratorConfig
from faststy.nn.repairer import Repairer
from faststy.tensors import to_image
from faststy.training.preview import GAP, PAPER, paint_preview, sheet

CPU = torch.device("cpu")


def test_pictures_stand_in_rows_on_paper():
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (50, 10), "blue")
    canvas = np.asarray(sheet([[red, red], [blue]]))
    assert canvas.shape == (20 + GAP + 10, 30 + GAP + 30, 3)
    assert (canvas[:20, :30] == (255, 0, 0)).all()
    assert (canvas[:20, 30 + GAP :] == (255, 0, 0)).all()
    assert (canvas[20 + GAP :, :50] == (0, 0, 255)).all()
    assert (canvas[:20, 30 : 30 + GAP] == PAPER).all()
    assert (canvas[20 : 20 + GAP] == PAPER).all()
    assert (canvas[20 + GAP :, 50:] == PAPER).all()


def test_a_row_is_photo_painting_map_and_repaired(tmp_path):
    torch.manual_seed(0)
    net, repairer = Generator(GeneratorConfig(8, 1)).eval(), Repairer(8)
    wide = torch.randint(256, (3, 33, 47), dtype=torch.uint8)
    paint_preview(net, repairer, [wide, wide[:, :20]], CPU, tmp_path / "p.png")
    canvas = np.asarray(Image.open(tmp_path / "p.png"))
    assert canvas.shape == (33 + GAP + 20, 4 * 33 + 3 * GAP, 3)
    columns = [canvas[:33, i * (33 + GAP) :][:, :33] for i in range(4)]
    photo = wide[:, :, 7:40]  # the middle square
    assert (columns[0] == photo.permute(1, 2, 0).numpy()).all()
    with torch.no_grad():
        x = photo[None] / 255
        painted = net(x)
        repaired = repairer.apply_repair(painted, *repairer(painted, x), 1.0)
    for column, expected in ((columns[1], painted), (columns[3], repaired)):
        expected = np.asarray(to_image(expected[0])).astype(int)
        assert np.abs(column - expected).max() <= 1
    assert len(np.unique(columns[2].reshape(-1, 3), axis=0)) < 3  # a fresh repairer's map is flat
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]
    about = Image.open(tmp_path / "p.png").info["Description"]
    assert about == "photo, painting, lost-content map, repaired painting"


def test_without_a_repairer_two_columns(tmp_path):
    net = Generator(GeneratorConfig(8, 1)).eval()
    paint_preview(net, None, [torch.zeros(3, 9, 9, dtype=torch.uint8)], CPU, tmp_path / "p.png")
    shown = Image.open(tmp_path / "p.png")
    assert shown.size == (18 + GAP, 9)
    assert shown.info["Description"] == "photo, painting"


def test_several_styles_take_turns(tmp_path):
    torch.manual_seed(0)
    net = Generator(GeneratorConfig(8, 1, styles=3)).eval()
    for norm in net.modules():
        if hasattr(norm, "bias") and norm.bias is not None and norm.bias.ndim == 2:
            torch.nn.init.normal_(norm.bias)
    photo = torch.randint(256, (3, 32, 32), dtype=torch.uint8)
    paint_preview(net, None, [photo], CPU, tmp_path / "p.png")
    canvas = np.asarray(Image.open(tmp_path / "p.png"))
    assert canvas.shape == (3 * 32 + 2 * GAP, 2 * 32 + GAP, 3)
    with torch.no_grad():
        for i, style in enumerate(torch.eye(3)):
            expected = np.asarray(to_image(net(photo[None] / 255, style[None])[0])).astype(int)
            shown = canvas[i * (32 + GAP) :][:32, 32 + GAP :]
            assert np.abs(shown - expected).max() <= 1
