# docker build -t swinunetr . && docker run --rm -v "$PWD/runs:/swinunetr/runs" swinunetr
# The commands are those of the README, which tests/test_docs.py compares.
FROM python:3.12-slim
WORKDIR /swinunetr
COPY . .
RUN pip install .
# For an NVIDIA GPU, take this line instead, and give `docker run` the option --gpus all:
# RUN pip install ".[cuda13]"
CMD ["python", "-m", "train"]
