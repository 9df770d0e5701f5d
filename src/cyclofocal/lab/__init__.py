"""The lab: data, recipes, training, comparison, statistics, reports and the command line (extra ``lab``)."""
