"""What tables say in README.ko.md; numbers and commands stay as they are."""

KOREAN = {
    "Not measured yet; this command does:": "아직 재지 않았습니다. 다음 명령으로 잽니다:",
    "† the weights or the yaml have changed since: `make results` measures again.":
        "† 잰 뒤에 가중치나 yaml이 바뀌었습니다. `make results`가 다시 잽니다.",
    "model": "모델",
    "drawings by people": "사람이 그린 그림",
    "outline followed": "윤곽을 따름",
    "both colours": "두 색 모두",
    "median IoU": "IoU 중앙값",
    "drawings": "그림 수",
    "PSNR to truth": "정답과의 PSNR",
    "SSIM to truth": "정답과의 SSIM",
    "file, MiB": "파일, MiB",
    "load cold, s": "처음 읽기, 초",
    "warm, s": "다시 읽기, 초",
    "s a step": "한 스텝, 초",
    "s a picture": "한 장, 초",
    "peak, GiB": "최대 메모리, GiB",
    "full": "전체 가지",
    "lite": "라이트 가지",
    "line of 4 px": "4픽셀 선",
    "line of 8 px": "8픽셀 선",
    "line of 16 px": "16픽셀 선",
    "all": "모두",
}  # fmt: skip
