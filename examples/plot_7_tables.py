"""
Tables with scikit-learn
========================

``CyclicalFocalClassifier`` is an estimator as scikit-learn's own ones are, and works in pipelines,
grid searches and cross-validation. With ``tau=1`` it predicts for classes that are equally likely.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import make_classification
from sklearn.metrics import ConfusionMatrixDisplay, balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cyclofocal.integrations.sklearn import CyclicalFocalClassifier

x, y = make_classification(
    3000, n_classes=3, n_informative=6, weights=[0.9, 0.08, 0.02], class_sep=1.2, flip_y=0.0, random_state=0
)
x, x_test, y, y_test = train_test_split(x, y, stratify=y, random_state=0)
models = {
    "cross-entropy": CyclicalFocalClassifier(loss="ce", random_state=0, max_epochs=40),
    "cyclical focal, tau 1": CyclicalFocalClassifier(tau=1.0, random_state=0, max_epochs=40),
}

# %%
# The rows of each matrix are per cent of a true class.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
for panel, (name, classifier) in zip(axes, models.items(), strict=True):
    predicted = make_pipeline(StandardScaler(), classifier).fit(x, y).predict(x_test)
    ConfusionMatrixDisplay.from_predictions(
        y_test, predicted, normalize="true", values_format=".0%", cmap="Blues", colorbar=False, ax=panel
    )
    panel.set_title(f"{name}\nbalanced accuracy {100 * balanced_accuracy_score(y_test, predicted):.0f} %")
plt.show()
