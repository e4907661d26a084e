from outbid_capabilities.runner_kit import BlockingRunner


class Counter(BlockingRunner):
    def load(self, model, options, progress):
        return {"slots": 4}

    def run(self, attempt):
        words = attempt.params["text"].split()
        return {"words": len(words), "longest": max(words, key=len, default="")}
