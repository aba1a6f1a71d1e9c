"""Models in S3 buckets: boto3 for credentials, listing and presigning; the bytes are ours."""
