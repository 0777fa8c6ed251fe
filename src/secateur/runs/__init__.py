"""From a job to evidence: settings, data, measuring, results."""
